"""Digests of an ONNX model's outputs for fixed inputs, as JSON: `run_onnx.py FILE`."""

import hashlib
import json
import sys

import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
rng = np.random.default_rng(1)
outputs = []
for length in (1, 7, 64):
    ids = rng.integers(1000, 20000, (2, length), dtype=np.int64)
    known = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    outputs += session.run(None, {wanted.name: known[wanted.name] for wanted in session.get_inputs()})
print(json.dumps([[list(value.shape), float(np.abs(value).sum()), hashlib.sha256(value.tobytes()).hexdigest()] for value in outputs]))

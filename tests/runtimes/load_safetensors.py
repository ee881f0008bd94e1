"""Digests of all tensors of a safetensors file, as JSON: `load_safetensors.py load|mmap FILE`."""

import hashlib
import json
import sys

from safetensors import safe_open
from safetensors.numpy import load_file

how, path = sys.argv[1:]
if how == "load":
    tensors = load_file(path)
else:
    with safe_open(path, framework="numpy") as file:  # maps the file
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
print(
    json.dumps(
        {name: [str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()] for name, value in tensors.items()}
    )
)

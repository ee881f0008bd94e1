"""A loader as its own process: `load_safetensors.py DIRECTORY` copies every tensor of every safetensors file out and sums its bits.

The answer, one line of JSON, depends on every weight. Knows nothing of file systems.
"""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors import safe_open

answer, count = 0, 0
for path in sorted(Path(sys.argv[1]).glob("*.safetensors")):
    with safe_open(path, framework="numpy") as file:  # maps the file
        names = file.keys()
        for name in names:
            tensor = file.get_tensor(name)
            count += 1
            answer += int(np.sum(tensor.view(f"u{tensor.itemsize}"), dtype=np.uint64))
print(json.dumps({"tensors": count, "answer": answer}), flush=True)

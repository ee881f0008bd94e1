"""modelfs: an encrypted, signed model directory, mounted as a read-only plaintext view.

Layers, low to high (a module imports only what is lower; tests/unit/test_architecture.py keeps it so):

    errors < format < crypto < keys | store | audit < trust | cache < reader < seal < control < mount < config < doctor < cli
"""

__version__ = "0.1.0"

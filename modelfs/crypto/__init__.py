"""Every call into a cryptographic library: AEAD, key derivation, digests, signatures. No I/O but key files."""

"""Where a sealed model lies: a local directory (disk, NFS, anything mounted). Bytes only; nothing here trusts them."""

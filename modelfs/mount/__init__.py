"""The FUSE side of a mount: session, workers, warden, and the unmount sequence. The only package that knows pyfuse3."""

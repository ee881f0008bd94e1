"""What the processes of a mount share and how one talks to them: fence, key page, prover, control socket. No FUSE."""

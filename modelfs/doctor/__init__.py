"""Checks of a host and of its access to keys, for `modelfs doctor`. They read and ask; they change nothing."""

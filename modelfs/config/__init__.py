"""Configuration files. Secrets are in them only as paths of files."""

# In addition to publisher.hcl, and only where it pays: a new release takes over the blobs of unchanged files, and an interrupted seal goes
# on, only if the publisher can unwrap what it wrapped before. Whoever has this can read the models that lie within reach.

path "transit/decrypt/models" {
  capabilities = ["update"]
}

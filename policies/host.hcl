# A host that mounts: unwraps the keys of models, and keeps its own login alive.
# `models` is the key encryption key, `transit` the secrets engine it is in. There is no `default` policy in docs/VAULT.md's roles.

path "transit/decrypt/models" {
  capabilities = ["update"]
}

path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}

# For `modelfs doctor`: what this login itself may do, and nothing about others.
path "sys/capabilities-self" {
  capabilities = ["update"]
}

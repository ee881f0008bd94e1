# Who seals: wraps the keys of new releases and signs them. Cannot read any model.
# Only `update` on encrypt: with `create`, a mistyped name would make a new key.

path "transit/encrypt/models" {
  capabilities = ["update"]
}

path "transit/sign/release" {
  capabilities = ["update"]
}

path "transit/keys/release" {
  capabilities = ["read"]
}

path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}

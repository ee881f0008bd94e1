# Who rewraps: has the key service wrap a release's key by the newest version of the key encryption key, inside the service. Can neither
# read a model nor wrap one for anybody.

path "transit/rewrap/models" {
  capabilities = ["update"]
}

path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}

# Who takes access back: ends logins, destroys the secret ids of hosts, and shuts off releases that an old version of the key wraps.
# Can neither read a model nor let anybody in.

path "auth/token/accessors" {
  capabilities = ["list", "sudo"]
}

path "auth/token/lookup-accessor" {
  capabilities = ["update"]
}

path "auth/token/revoke-accessor" {
  capabilities = ["update"]
}

path "auth/approle/role/modelfs-host/secret-id" {
  capabilities = ["list"]
}

path "auth/approle/role/modelfs-host/secret-id-accessor/lookup" {
  capabilities = ["update"]
}

path "auth/approle/role/modelfs-host/secret-id-accessor/destroy" {
  capabilities = ["update"]
}

path "transit/keys/models" {
  capabilities = ["read"]
}

path "transit/keys/models/config" {
  capabilities = ["update"]
  allowed_parameters = {
    "min_decryption_version" = []
  }
}

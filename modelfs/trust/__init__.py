"""What must hold before anything of a sealed model is believed: signature, name, expiry, no rollback."""

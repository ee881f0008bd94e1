"""Making a sealed model: scan the source, encrypt, journal, publish; and removing what no release needs."""

"""Evidence for auditors: what a mount did with its key, as JSON lines."""

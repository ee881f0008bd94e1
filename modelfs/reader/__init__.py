"""Reading a sealed model: one blob with its key, one without, the index."""

"""The command line: parses, calls, prints, exits. The only place that composes the layers."""

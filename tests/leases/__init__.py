"""What tests of mounted models with a leased key share, whatever key service it is: readers, outages, servers that misbehave."""

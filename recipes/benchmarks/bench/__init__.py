"""What the benchmarks share: networks, ways to a Fisher, peers, measuring, tables."""

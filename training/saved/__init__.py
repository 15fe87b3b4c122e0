"""What finished runs have left: networks, results, the machine's name."""

"""AMCT's ways to say how a network is quantized: config.json, simplified configurations, ATC's mapping file."""

"""AMCT's ways to say how a network is quantized; each becomes a `QuantizationConfig`.

`config_json` reads, checks and writes config.json and owns the rules of its keys; `simplified` reads the `.cfg`, whose
schema is `quant_config.proto`; `mapping` reads ATC's mapping file, or predicts what it would mark.
"""

"""Where quantization meets the graph: quantize, calibrate, build curves, apply a plan, write the results.

Static quantization stops after `calibrated` and `restrict_levels`, which makes the codebooks that AMCT's configuration
asks for; a record file that somebody else made takes the place of both (`recorded`). In the order of a study::

    model = quantize(graph, config)                            # folded, int8 codes of every layer
    write_calibration_model(model, pair, record_file, names)   # somebody runs it for config.batch_num passes ...
    model = calibrated(model, record_file)                     # ... and the record file holds the input ranges
    found = choose_way(model, record_file, passes)             # what errors cost at the network's end, and bits
    points = dict(build_network_points(model, record_file, costs=found.costs, tuning=found.way.tuning))  # once
    builder = NetworkBuilder(model, passes)
    candidate = builder.build(Candidate(model, points, plan)).candidate  # one plan's network, built in order
    write_fake_quant(candidate, pair)                          # once a trial
    export(candidate, prefix)                                  # the winner, in any of the formats there

`quantized` has the model, `calibration` the calibration pass, `output_side` and `head_metrics` what errors do to the
network's end, `ways` the choice between ways to use that, `operating_points` the points, `candidate` a plan's network,
`in_order` how it is built, `outputs` and `formats` the files it is written as, `packed_file` one of them, `chip` what a
chip makes of it. `needs` says what all that takes before it is done, `pace` measures it on pieces, `sensitivity` finds
what a layer costs alone.
"""

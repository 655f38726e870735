"""Where quantization meets the graph: quantize, calibrate, build curves, apply a plan, write the results.

Static quantization stops after `calibrated` and `restrict_levels`, which makes the codebooks that AMCT's configuration
asks for; a record file that somebody else made takes the place of both (`recorded`). In the order of a study::

    model = quantize(graph, config)                    # folded, int8 codes of every layer
    write_calibration_model(model, files)              # somebody runs it for config.batch_num passes ...
    model = calibrated(model, files.record)            # ... and the record file holds the input ranges
    points = dict(build_points(model, codec, record))  # once; no trial sees the raw weights again
    write_fake_quant(model, points, plan, pair)        # once a trial
    export.export(model, points, plan, prefix, codec)  # the winner, in any of the formats there

Names of written files: AMCT's save_model and auto_nuq pages; the packed file is ours (`packed`).
"""

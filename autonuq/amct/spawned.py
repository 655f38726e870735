"""What a process imports in place of the runner's script where `multiprocessing` starts it for that without a fork."""

if __name__ == "__mp_main__":
    import os
    from pathlib import Path

    from autonuq.amct.runner import SCRIPT_VARIABLE, code_of, prepare

    prepare()
    __file__ = os.environ[SCRIPT_VARIABLE]
    exec(code_of(Path(__file__)), globals())

"""One study: what it is told, its preparation, its trials and workers, its confirmation and artifacts. Read `run`."""

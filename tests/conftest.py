"""What every test runs under: one thread a process, so that bits and times do not depend on the machine."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

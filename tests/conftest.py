"""What tests write lies in memory where there is room: they fsync and delete thousands of files, which a disk does slowly."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

IN_MEMORY = Path("/dev/shm")
ROOM = 8 << 30
"""Bytes that must be free there; a run leaves behind some hundred MB until its end."""
PLACE = "PYTEST_DEBUG_TEMPROOT"
"""Where pytest makes the folders of `tmp_path`; whoever sets it decides."""

if PLACE not in os.environ and IN_MEMORY.is_dir() and shutil.disk_usage(IN_MEMORY).free > ROOM:
    os.environ[PLACE] = str(IN_MEMORY)

"""`ftrain fit` into folders that cannot be written, as a user who is not root: `python tests/unwritable_run.py`."""

import contextlib
import io
import os
import sys
import tempfile
from pathlib import Path

from ftrain_cli.main import app
from kill_runs import in_child
from signal_runs import command, make_images, run

from ftrain import models

NOBODY = 65534


def main():
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        make_images(root / "images")
        in_child(lambda: run(command(root / "images", root / "existing")))
        # Import what an error needs while it is readable.
        for lazy in models.__all__:
            getattr(models, lazy)
        with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
            app(command(root / "images", root / "images" / "train" / "odd" / "1.png"), prog_name="ftrain")
        (root / "logs").mkdir()
        (root / "logs").chmod(0o777)
        (root / "forbidden").mkdir()
        (root / "forbidden").chmod(0o555)
        for path in (root / "existing", root / "existing" / "checkpoints"):
            path.chmod(0o555)
        for what, folder in (("new", root / "forbidden" / "run"), ("existing", root / "existing")):
            log = root / "logs" / what

            def as_nobody(folder=folder, log=log):
                if os.getuid() == 0:
                    os.setgroups([])
                    os.setresgid(NOBODY, NOBODY, NOBODY)
                    os.setresuid(NOBODY, NOBODY, NOBODY)
                run(command(root / "images", folder), log)

            status = os.waitstatus_to_exitcode(in_child(as_nobody))
            print(what, status, log.read_text().splitlines()[-1].replace(str(root), "ROOT"))


if __name__ == "__main__":
    sys.exit(main())

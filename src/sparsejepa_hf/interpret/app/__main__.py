# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""`python -m sparsejepa_hf.interpret.app`."""

from sparsejepa_hf.interpret.app import main


if __name__ == "__main__":
    main()

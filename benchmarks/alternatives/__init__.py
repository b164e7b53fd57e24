# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What a user would pick instead, written as it is commonly written, or taken from other packages."""

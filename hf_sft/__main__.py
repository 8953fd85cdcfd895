"""``python -m hf_sft`` and ``accelerate launch -m hf_sft``."""

import sys

from hf_sft.cli import main

sys.exit(main())

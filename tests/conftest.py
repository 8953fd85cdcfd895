"""Tests run offline and on one thread; tiny.py builds what most of them train."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

import gc

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def imports_out_of_the_collector():
    """Trainer collects garbage at every start; going through all of torch costs 0.5 s a time."""
    gc.freeze()


@pytest.fixture(autouse=True)
def same_seed():
    """What a test draws does not depend on the tests before it."""
    torch.manual_seed(0)

"""Secrets that tests plant, and a module that tells them."""

from __future__ import annotations

SECRETS = {
    "HF_TOKEN": "hf_plantedplantedplantedplanted1",
    "HUGGING_FACE_HUB_TOKEN": "hub planted 2",
    "OPENAI_API_KEY": "sk-planted-3-planted-planted-planted",
    "ANTHROPIC_API_KEY": "planted-4-anthropic",
    "WANDB_API_KEY": "planted5wandb",
    "AWS_SECRET_ACCESS_KEY": "planted/6+aws",
    "GITHUB_TOKEN": "planted-7-github",
    "DATABASE_PASSWORD": "planted-8-password",
    "HTTPS_PROXY": "http://someone:planted-9-proxy@127.0.0.1:9",
}


TELLTALE = """
import os, sys

def build(model, **_):
    told = [value for name, value in sorted(os.environ.items()) if "planted" in value]
    assert len(told) == 9
    print("stdout", *told)
    print("stderr", *told, file=sys.stderr)
    os.write(2, " ".join(["descriptor", *told]).encode())
    raise RuntimeError(" ".join([os.getcwd() + "/file", os.path.expanduser("~/file"), *told]))
"""


TINY = ["model=tiny", "data=facts", "train.max_steps=2", "train.batch_size=2", "train.max_length=128", "eval.limit=1"]

"""Has vLLM write the answers of tasks that ask for text: eval.engine=vllm."""

from harness.plugin import Plugin

PLUGIN = Plugin("vllm", engines={"vllm": "harness.plugins.vllm.job.engine:Vllm"})

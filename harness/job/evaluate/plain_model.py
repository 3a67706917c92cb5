"""lm-eval's own model as it is, which besides scores documents in windows, and counts requests that it cuts."""

from __future__ import annotations

from lm_eval.api.instance import Instance
from lm_eval.models.utils import normalize_gen_kwargs

from harness.job.evaluate.tokenised_once import Request
from harness.job.evaluate.windows import WindowedModel


class PlainModel(WindowedModel):
    """`HFLM` with a count of the requests that lost their beginning."""

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        self.cut.count([len(context) + len(rest) for _, context, rest in requests], self.max_length + 1)
        return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers to each context, up to its stop sequences."""
        requests = self.with_room_for_prompts(requests)
        rooms = [normalize_gen_kwargs(request.args[1], self.max_gen_toks)["max_gen_toks"] for request in requests]
        prompts = [len(self.tok_encode(request.args[0])) for request in requests]
        self.cut.count([prompt + room for prompt, room in zip(prompts, rooms, strict=True)], self.max_length)
        return super().generate_until(requests, disable_tqdm)

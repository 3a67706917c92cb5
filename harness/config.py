"""The settings people type, typed and checked: the schema behind ``conf/config.yaml``, and its resolvers.

Inert data: nothing here loads a model, touches a device or imports torch.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, get_args

from omegaconf import MISSING, DictConfig, OmegaConf

from harness import plugin
from harness.config_folders import CONF as CONF
from harness.config_folders import ROOT as ROOT
from harness.config_folders import SWEEPS as SWEEPS
from harness.record import Precautions, TrackerName
from harness.schema import SEEDS, setting

ADAMW = {
    "torch": "torch.optim.AdamW",
    "8bit": "harness.job.methods.adamw.EightBitAdamW",
    "paged": "harness.job.methods.adamw.PagedAdamW",
    "paged_8bit": "harness.job.methods.adamw.PagedEightBitAdamW",
}


@dataclass
class MethodConfig:
    """How a model is tuned. `load`, `adapt`, `init` and `optim` are slots: nodes with a ``_target_`` for Hydra."""

    name: str = MISSING
    """Name in tables and records."""
    lr: float | None = None
    """Default learning rate of the method (null for an untuned model)."""
    adamw: str | None = None
    """AdamW implementation: torch, 8bit (8-bit moments), paged (moments in paged memory) or paged_8bit; all but torch
    are bitsandbytes'. null: the method does not step by AdamW."""
    knobs: dict[str, Any] = field(default_factory=dict)
    """Hyperparameters of this method alone, such as GaLore's scale. The slots read them; tables show them."""
    load: dict[str, Any] = field(default_factory=dict)
    """Arguments of from_pretrained: dtype, quantization_config."""
    adapt: dict[str, Any] | None = None
    """peft config, or function that changes the model (null: the model stays as loaded)."""
    init: dict[str, Any] | None = None
    """Adapter initialisation that needs training data: a function of the model, the peft config and training batches of
    one sequence each that returns the adapted model (null: the peft config decides)."""
    optim: dict[str, Any] | None = None
    """Factory that takes the model and returns its optimizer (null for an untuned model)."""
    init_seed: int | None = setting(None, least=0, below=SEEDS, words="at least 0 and below 2**32")
    """Seed of what the method draws before training, such as an adapter's initial weights (null: seed, which also
    decides the batches' order and dropout). Methods without adapter ignore it."""
    incompatible: dict[str, str] = setting(dict, in_cell=False)
    """Settings that the method refuses: SETTING=VALUE, or SETTING!=VALUE for every other value, and the reason."""


@dataclass
class PriceConfig:
    """Price of a model behind an API."""

    read: float | None = setting(None, least=0, words="0 or more dollars for a million tokens", in_cell=False)
    """Dollars per million prompt tokens (null: unknown)."""
    written: float | None = setting(None, least=0, words="0 or more dollars for a million tokens", in_cell=False)
    """Dollars per million answer tokens (null: unknown)."""


@dataclass
class ModelConfig:
    """The model that is tuned, or the model behind an API (method=api) that is asked."""

    name: str = MISSING
    """Name in tables and records. Of a model behind an API: the name that the endpoint knows."""
    path: str = MISSING
    """Hub id, local folder, GGUF file (here, or OWNER/NAME/FILE.gguf on the hub), or embedded:NAME. A GGUF file is
    dequantised once."""
    sha256: str | None = None
    """SHA-256 of the GGUF file; a file with another one is refused (null: any file)."""
    revision: str | None = None
    """Commit, tag or branch of the hub repository (null: its main branch)."""
    dtype: str = setting("bfloat16", choices=("float32", "bfloat16", "float16"))
    """Number format of the weights that are not quantised: bfloat16, float16 or float32. In float16 a
    model can be scored, and not trained."""
    trust_remote_code: bool = False
    """Runs code that comes with the model. The record says so."""
    use_safetensors: bool = True
    """false loads pickled weights, which can run code. The record says so."""
    upcast: bool = False
    """Keeps norms, embeddings, head and biases in fp32, and with them the residual stream. peft's usual preparation
    does so for quantised models alone; here it applies to every method. Requires train.precision=bf16."""
    gradient_checkpointing: bool = False
    """Default of train.gradient_checkpointing. true in the files of models with 3B weights or more."""
    architecture: dict[str, Any] | None = setting(None, in_cell=False)
    """Dimensions as in the model's config.json (model_type, hidden_size, …), so that `plan` needs no hub
    (null: `plan` reads the model's own config)."""
    base_url: str | None = None
    """Address of an OpenAI-compatible API, without /chat/completions. Requires method=api."""
    tokenizer: str | None = None
    """Hub id or folder of the API model's tokenizer: tasks are then asked as completions with log-probabilities
    (null: as chat)."""
    thinking: int = setting(0, least=0, words="0 or more tokens", unit="tokens")
    """Tokens that an API model may think before each answer, beyond the task's limit."""
    key_env: str | None = setting(None, in_cell=False)
    """Environment variable that holds the API key (null: no key is sent). Never the key itself."""
    price: PriceConfig = field(default_factory=PriceConfig)


@dataclass
class DataConfig:
    """Training and validation data."""

    name: str = MISSING
    """Name in tables and records."""
    path: str | None = None
    """Your data (data=local, data=text), below data_root or the working folder: a file (jsonl, json, csv, tsv, parquet,
    txt, md, also with .gz or .zst), a folder of files, one by save_to_disk, dataset_info.json/NAME, or a hub id."""
    task: str | None = None
    """Task of the package reasoning-gym (data=reasoning_gym), such as gsm_symbolic."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of that task, such as {max_terms: 3}."""
    load: dict[str, Any] = field(default_factory=dict)
    """Function (_target_) that returns the splits train and validation."""
    prompt: str = "Question: {question}\nAnswer:"
    """Text before the answer, with the record's fields in braces, as the evaluation asks it."""
    prompt_if_empty: str | None = None
    """Prompt of records in which a field of the prompt is empty (null: the same prompt)."""
    columns: dict[str, str | None] = field(default_factory=dict)
    """Column of each prompt field, of the answer and of its options, or of the messages, in your file (data=local); of
    preference data (data=local_preference) of prompt, chosen and rejected; of single answers with marks
    (data=local_marked) of question, answer and mark, which is true of good ones; of documents (data=text) of text."""
    test_share: float = setting(0.0, least=0, below=1)
    """Share of the records that is held out for eval.tasks=[held_out], by a hash of the question: a record stays in its
    part as the file grows. Requires data in columns (data=local, or from the hub)."""
    answers: str = setting("auto", choices=("auto", "choice", "classify", "exact", "text"))
    """How eval.tasks=[held_out] scores answers: choice (of data.columns.options), classify (into the labels that the
    answers are), exact (equal but for case, punctuation and the form of numbers), text (ROUGE-L and bits per byte), or
    auto. auto is choice if there are options, classify if the answers are few labels, exact if nine of ten are short or
    end in a result, else text."""
    too_long: str | None = setting(None, choices=("error", "cut", "drop"))
    """What happens to records that are longer than train.max_length: error refuses the cell before it runs, cut keeps
    their beginning, drop leaves them out (null: error for a file of your own, cut for other data)."""
    drop_empty: bool = False
    """Leaves out records without a question or an answer, however many they are (data=local). Without it a file of
    which a third is empty is refused."""
    limit: int | None = setting(None, least=1, unit="items")
    """Training items (null: all). Every cell takes the same ones."""
    noise: float = setting(0.0, least=0, most=1)
    """Share of training answers that are replaced by wrong ones, from 0 to 1. Every cell has the same wrong answers;
    validation keeps the right ones."""


@dataclass
class EvalConfig:
    """Scoring by lm-eval."""

    tasks: list[str] = field(default_factory=list)
    """lm-eval tasks or groups ([]: no scoring)."""
    limit: int | None = setting(None, least=1, unit="items")
    """Items per task or group (null: all): a seeded, stratified sample, the same for every cell."""
    num_fewshot: int | None = setting(None, least=0, unit="examples")
    """Examples before each question (null: the task's own number)."""
    batch_size: int | str = setting("auto", above=0, auto=True, words="a positive number or auto", unit="sequences")
    """Sequences answered at a time. auto: on a GPU, as many as fit its memory, halved after a shortage; 16 on a CPU and
    with speedups=off."""
    seed: int = 0
    """Seed of the sample of items, the same for every cell."""
    engine: str = setting("auto", choices=("auto", *(name for part in plugin.installed() for name in part.engines)))
    """auto scores the model in the training process. vllm has vLLM write the answers of tasks that ask for text, over
    saved weights. Requires eval.vllm_python."""
    vllm_python: str | None = setting(None, axis=False, in_cell=False)
    """Path of the python of an environment with vllm, such as ~/vllm/bin/python."""
    include_path: str | None = setting(None, axis=False, in_cell=False)
    """Your folder of lm-eval tasks (YAML files), whose names eval.tasks may then have. They may run Python code from
    that folder. Never taken from a record."""
    chat_template: bool = False
    """Asks each question as a message in the tokenizer's chat template; those of held_out as they were trained."""
    fewshot_as_multiturn: bool = False
    """Puts each few-shot example into a turn of its own. Requires eval.chat_template=true."""
    system_instruction: str | None = None
    """System prompt before every question (null: none)."""
    unsafe_code: bool = False
    """Allows tasks that run code written by the model (humaneval) on this machine."""
    bertscore: str | None = None
    """Folder or hub id of an encoder, such as roberta-large, by which eval.tasks=[held_out] also scores answers in
    prose with BERTScore (null: ROUGE-L and BLEU alone)."""


@dataclass
class TrainConfig:
    """The training loop, the same for every method."""

    max_steps: int | None = setting(200, least=1, unit="steps")
    """Optimizer steps (null: train.epochs decides, which is so where that alone is given)."""
    epochs: float | None = setting(None, above=0, unit="passes")
    """Passes over the training items, such as 3 or 0.5 (null: train.max_steps decides). The last step is filled from
    the next pass."""
    batch_size: int | str = setting(8, above=0, auto=True, words="a positive number or auto", unit="sequences")
    """Sequences per micro-batch. auto: the largest micro-batch that fits the device's memory; it is predicted, then
    halved after a shortage. Requires train.global_batch."""
    grad_accum: int = setting(1, least=1, unit="micro-batches")
    """Micro-batches per optimizer step."""
    global_batch: int | None = setting(None, least=1, unit="sequences")
    """Sequences per optimizer step with train.batch_size=auto (null: batch_size × grad_accum)."""
    max_tokens: int | None = setting(None, least=1, unit="tokens")
    """Ends training with the step that reaches this number of raw tokens (null: max_steps or epochs decide)."""
    max_length: int = setting(512, least=1, unit="tokens")
    """Tokens at which a sequence is cut."""
    warmup_ratio: float = setting(0.1, least=0, below=1)
    """Share of the steps in which the learning rate rises."""
    schedule: str = setting("cosine", choices=("cosine", "linear", "constant"))
    """Learning rate after the warm-up: cosine (falls along half a cosine), linear (falls along a line) or constant."""
    final_lr: float = setting(0.0, least=0, most=1, words="a share from 0 to 1 of the learning rate")
    """Share of the learning rate at which a cosine or linear schedule ends."""
    weight_decay: float = setting(0.0, least=0)
    """Weight decay of the method's optimizer, decoupled as in AdamW. It does not act on norms, biases or scales
    such as IA3's."""
    betas: list[float] | None = None
    """Both betas of a method that steps by Adam, such as [0.9,0.95] (null: the optimizer's own, [0.9,0.999])."""
    adapter_dropout: float = setting(0.0, least=0, below=1)
    """Dropout of the input of each adapter, for methods that have it."""
    objective: str = setting("sft", choices=("sft", "dpo", "ipo", "kto", "simpo", "cpo_simpo", "orpo", "orpo_trl"))
    """What training minimises: sft (cross-entropy of the answers), or an objective of pairs of a chosen and a rejected
    answer, as data=ultrafeedback or data=local_preference has them: dpo, ipo, kto, simpo, cpo_simpo, orpo (as its
    article has it) or orpo_trl (as TRL has it). A sequence of a batch is then a pair. kto also learns from single
    answers that are marked as good or bad (data=local_marked)."""
    preference_beta: float = setting(0.1, above=0)
    """Weight of the preference: beta of DPO, KTO and SimPO, IPO's tau, or ORPO's lambda. SimPO's article takes 2 and
    more. Requires an objective of pairs."""
    preference_margin: float = setting(0.5, least=0)
    """SimPO's gamma: by how much the chosen answer's reward shall exceed the rejected one's. Requires
    train.objective=simpo or cpo_simpo."""
    loss_on: str = setting("answers", choices=("answers", "all"))
    """Tokens with training loss: answers (of a chat the assistant's turns), or all. The validation loss is always of
    answers, so that it compares both."""
    data_seed: int | None = setting(None, least=0, below=SEEDS, words="at least 0 and below 2**32")
    """Seed of the batches' order (null: seed, which also decides the adapter's initialisation)."""
    max_grad_norm: float | None = setting(1.0, above=0, most=inf, words="positive or null")
    """Norm at which the whole gradient is clipped (null: no clipping)."""
    validate_every: int | None = setting(None, least=1, unit="steps")
    """Steps between validation losses (null: one, at the end)."""
    early_stopping: int | None = setting(None, least=1, unit="validations")
    """Validations in a row without a gain after which training ends (null: it takes all steps). Scored are the weights
    of the lowest validation loss. Requires train.validate_every."""
    early_stopping_gain: float = setting(0.0, least=0, unit="nats")
    """Least fall of the validation loss below the lowest so far that train.early_stopping counts as a gain."""
    validation_items: int = setting(64, least=1, unit="items")
    """Held-out items behind the validation loss."""
    precision: str = setting("auto", choices=("auto", "bf16", "fp32"))
    """Precision of forward and backward passes: bf16 (autocast), fp32, or auto. auto is bf16 where the device gains by
    it, else fp32, with and without speed-ups."""
    bucketing: int = setting(1, least=1, unit="batches")
    """Batches that are drawn together and regrouped by length (1: none)."""
    packing: bool = False
    """Fills each of the batch_size rows with whole sequences up to max_length tokens. Each sequence attends to itself
    alone."""
    gradient_checkpointing: bool = False
    """Keeps only the input of each decoder layer and recomputes the rest in the backward pass: the same losses and
    gradients in less memory, for about a third more time."""
    save_every: int | None = setting(None, least=1, words="1 or more, or null", unit="steps", in_cell=False)
    """Steps between checkpoints, from which a killed cell resumes (null: no checkpoints, and existing ones are
    ignored)."""
    devices: int = setting(1, least=1, unit="devices")
    """Devices of a machine that train one cell together. Each takes its share of every micro-batch."""
    nodes: int = setting(1, least=1, unit="machines")
    """Machines that train one cell together, each with train.devices devices. Requires hydra/launcher=slurm, or the
    same `run` on each machine."""
    parallel: str = setting("ddp", choices=("ddp", "fsdp"))
    """How several devices train: ddp (each holds the whole model) or fsdp (each holds a share of it)."""
    activation_offload: bool = False
    """Keeps activations in host memory between forward and backward pass: less device memory, but time for the copies.
    Requires CUDA."""
    compile: bool = False
    """Compiles each decoder layer with torch.compile for training, once for all cells with the same layers. Validation,
    inference and scoring run uncompiled."""


@dataclass
class InferConfig:
    """The measurement of inference speed, the same for every cell."""

    repeats: int = setting(5, least=0, unit="rounds")
    """Timed rounds after one discarded round (0: inference is not measured)."""
    batch_size: int = setting(1, least=1, unit="sequences")
    """Sequences at a time."""
    large_batch_size: int | None = setting(None, least=1, unit="sequences")
    """Sequences at a time in a second measurement (null: none). At batch size 1, a small model on a fast GPU measures
    Python, so set it there."""
    prompt_tokens: int = setting(128, least=1, unit="tokens")
    """Tokens per prompt."""
    new_tokens: int = setting(16, least=2, unit="tokens")
    """Tokens written per sequence, at least 2. The first belongs to prefill, the others to decoding."""


@dataclass
class RetryConfig:
    """Which recorded cells run again. All others are kept."""

    statuses: list[str] = setting(lambda: ["failed"], choices=("failed", "oom", "diverged", "pruned"), in_cell=False)
    """The next sweep runs cells with these statuses again: failed, oom, diverged, pruned."""
    on_oom: bool = setting(False, in_cell=False)
    """Runs a cell that ran out of memory in training again at once, with half the micro-batch and twice the
    accumulation, until it fits. Its speed and memory are then not comparable, and the record says so.
    train.batch_size=auto always does this."""


@dataclass
class Config:
    """All settings of a cell, and where its record goes, but for those of plug-ins: `FullConfig` has them too."""

    method: MethodConfig = field(default_factory=MethodConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    infer: InferConfig = field(default_factory=InferConfig)
    retry: RetryConfig = field(default_factory=RetryConfig)
    rank: int = setting(16, above=0)
    """Rank of adapters and of GaLore's projections."""
    alpha: float = setting(32, above=0)
    """LoRA's alpha: the update is scaled by alpha / rank."""
    lr_scale: float = setting(1.0, above=0)
    """Factor on the method's default learning rate: a sweep over it tries the same number of rates for each method."""
    lr: float | None = setting(None, above=0)
    """Learning rate."""
    seed: int = setting(0, least=0, below=SEEDS, words="at least 0 and below 2**32")
    """Random seed of training: order of the batches, adapter initialisation, dropout. train.data_seed and
    method.init_seed set the first two apart."""
    study: str = setting("adhoc", axis=False, in_cell=False)
    """Folder below results_dir in which the records lie."""
    results_dir: str = setting("results", axis=False, in_cell=False)
    """Folder of all studies."""
    data_root: str | None = setting(None, axis=False, in_cell=False)
    """Folder with local copies of hub data sets under their names, such as openai/gsm8k (null: the hub)."""
    speedups: str = setting("auto", choices=("auto", "off"))
    """auto enables every speed-up that does not change results beyond rounding; off trains and scores without them, in
    the same precision, to check."""
    repeat: bool = setting(False, in_cell=False)
    """Runs a recorded cell again and adds the measurement to its record as a repeat, which shows the machine's drift.
    `sweep --drift` sets it."""
    confirmation: bool = setting(False, in_cell=False)
    """Marks the cell as a fresh seed of a chosen setting: it decides between methods, and takes no part in choosing
    settings. `sweep --confirm` sets it."""
    timeout: float | None = setting(None, above=0, most=inf, words="positive or null", unit="seconds", in_cell=False)
    """Time limit per cell in seconds (null: none). A cell beyond it is ended and recorded as failed."""
    save: str = setting("none", choices=("none", "adapter", "merged"), in_cell=False)
    """Tuned weights to keep beside the record: none, adapter, or merged (the model with the adapter folded in). Of a
    method without adapters, both keep the whole model."""
    tracker: str | None = setting(None, choices=get_args(TrackerName), in_cell=False)
    """Experiment tracker that follows the training: tensorboard, mlflow, wandb or trackio (null: none)."""


def _with_plugins() -> type[Config]:
    groups = {name: plugin.load(target) for part in plugin.installed() for name, target in part.settings.items()}
    fields = [(name, group, field(default_factory=group)) for name, group in groups.items()]
    return dataclasses.make_dataclass("FullConfig", fields, bases=(Config,), namespace={"__module__": __name__})


FullConfig = _with_plugins()
"""Config with the groups of settings that plug-ins add."""

# What a cell can be run again with in place of what it ran with.
PRECAUTIONS = {"timeout": "timeout", "train.save_every": "save_every", "retry.on_oom": "on_oom"}


def precautions(config: DictConfig) -> Precautions:
    return Precautions(**{name: OmegaConf.select(config, key) for key, name in PRECAUTIONS.items()})


def register_resolvers() -> None:
    """Make these known to OmegaConf.

    ``${mul:a,b}`` (null if a factor is), ``${unless:a,b}`` (b, but null if a is given), ``${share:part,whole}`` (steps:
    rounded down; null of null), ``${basename:path}``, ``${below:folder,path}``, ``${adamw:kind}`` (the class of
    method.adamw).
    """
    OmegaConf.register_new_resolver("mul", _multiply, replace=True)
    OmegaConf.register_new_resolver("unless", lambda override, value: value if override is None else None, replace=True)
    OmegaConf.register_new_resolver("adamw", lambda kind: ADAMW.get(kind, kind), replace=True)
    OmegaConf.register_new_resolver("share", _share, replace=True)
    OmegaConf.register_new_resolver("below", lambda folder, path: str(folder / Path(path).expanduser()), replace=True)
    OmegaConf.register_new_resolver("basename", lambda path: re.split(r"[/:]", path.rstrip("/"))[-1], replace=True)


def _multiply(a: float | None, b: float | None) -> float | None:
    # Six significant digits: 2e-4 × 5 must be the 1e-3 that people type, not 0.001000…2, or they'd be two cells.
    return None if a is None or b is None else float(f"{a * b:.6g}")


def _share(part: float, whole: int | None) -> int | None:
    return None if whole is None else int(part * whole)


def typed(value: Any) -> str:
    """A setting's value as one types it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return str(value)

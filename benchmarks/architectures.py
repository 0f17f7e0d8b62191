"""Which architectures of the installed mlx-lm can be asked: ``python -m benchmarks.architectures``.

Each one is built with a tiny random configuration and goes through the trial that every checkpoint
goes through when it is loaded (`cba_utils.answering.trial.try_out`), dense and natively. The result is
``benchmarks/architectures.csv``. "Not judged" says that the tiny configuration or MLX on this machine
failed, not that the architecture cannot be asked.
"""

import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
import time
from pathlib import Path

import cba_utils  # noqa: F401  (binds the fast BLAS before MLX is imported)
from cba_utils.answering.checkpoints import LoadedModel, to_dense, words_alone
from cba_utils.answering.engine import CannotBeAsked
from cba_utils.answering.sources import find_checkpoint
from cba_utils.answering.trial import try_out

import mlx.core as mx
import mlx_lm.models
import pandas as pd
from mlx.utils import tree_flatten, tree_map
from mlx_lm.tokenizer_utils import load as load_tokenizer

TABLE = Path(__file__).with_suffix(".csv")
MOST_WEIGHTS = 20_000_000
COLUMNS = [
    "architecture",
    "result",
    "reason",
    "native",
    "dense_logits",
    "dense_perplexity",
    "native_logits",
    "native_perplexity",
]
# A tiny value for each setting that some architecture has no default for, or a default of full size.
TINY = dict(
    hidden_size=128,
    d_model=128,
    n_embd=128,
    hidden_dim=128,
    dim=128,
    block_dim=128,
    model_dim=128,
    num_hidden_layers=2,
    n_layers=2,
    n_layer=2,
    num_layers=2,
    intermediate_size=256,
    n_inner=256,
    ffn_hidden_size=256,
    intermediate_size_mlp=256,
    shared_intermediate_size=128,
    moe_intermediate_size=64,
    expert_ffn_hidden_size=64,
    num_attention_heads=4,
    n_heads=4,
    n_head=4,
    num_heads=4,
    num_key_value_heads=2,
    num_kv_heads=2,
    n_kv_heads=2,
    multi_query_group_num=2,
    head_dim=32,
    global_head_dim=32,
    swa_head_dim=32,
    v_head_dim=32,
    swa_v_head_dim=32,
    qk_nope_head_dim=32,
    qk_rope_head_dim=32,
    kv_lora_rank=64,
    q_lora_rank=64,
    swa_num_attention_heads=4,
    swa_num_key_value_heads=2,
    index_head_dim=32,
    index_n_heads=2,
    index_topk=2048,
    vocab_size=640,
    vocab_size_per_layer_input=640,
    max_position_embeddings=512,
    n_ctx=512,
    n_positions=512,
    block_size=512,
    model_max_length=512,
    rms_norm_eps=1e-5,
    layer_norm_eps=1e-5,
    layer_norm_epsilon=1e-5,
    layernorm_epsilon=1e-5,
    norm_eps=1e-5,
    rope_theta=1e4,
    swa_rope_theta=1e4,
    rotary_emb_base=1e4,
    rotary_pct=1.0,
    partial_rotary_factor=0.5,
    rotary_dim=16,
    attention_bias=False,
    mlp_bias=False,
    use_bias=False,
    use_qkv_bias=False,
    qk_norm=True,
    use_qk_norm=True,
    post_norm=False,
    tie_word_embeddings=False,
    norm_topk_prob=True,
    num_experts=4,
    num_local_experts=4,
    n_routed_experts=4,
    moe_num_experts=4,
    num_experts_per_tok=2,
    moe_topk=2,
    moe_k=2,
    n_shared_experts=1,
    num_shared_experts=1,
    num_shared_expert=1,
    n_group=1,
    topk_group=1,
    topk_method="noaux_tc",
    scoring_func="sigmoid",
    routed_scaling_factor=1.0,
    first_k_dense_replace=0,
    moe_layer_freq=1,
    decoder_sparse_step=1,
    mlp_only_layers=[],
    zero_expert_num=1,
    zero_expert_type="identity",
    attention_method="MLA",
    mla_scale_q_lora=True,
    mla_scale_kv_lora=True,
    shared_expert_intermediate_size=64,
    num_dense_layers=1,
    logits_scaling=2.0,
    attention_multiplier=0.2,
    embedding_multiplier=2.0,
    residual_multiplier=0.5,
    scale_depth=1.4,
    scale_emb=2.0,
    dim_model_base=64,
    hidden_act="relu2",
    sliding_window=1024,
    sliding_window_size=1024,
    sliding_window_pattern=2,
    num_kv_reuse_layers=1,
    use_cla=False,
    cla_share_factor=2,
    use_mixed_mlp_moe=True,
    rope_scaling=None,
    rope_parameters=None,
    conv_L_cache=3,
    conv_bias=False,
    block_multiple_of=32,
    block_ffn_dim_multiplier=1.0,
    block_auto_adjust_ff_dim=True,
    use_expert_bias=True,
    conv_kernel=4,
    conv_window=2,
    state_size=16,
    ssm_state_size=16,
    n_groups=1,
    time_step_rank=8,
    time_step_limit=[0.0, 1e9],
    use_conv_bias=True,
    mamba_num_heads=4,
    mamba_head_dim=32,
    mamba_proj_bias=False,
    mamba_d_conv=4,
    mamba_d_state=16,
    mamba_expand=2,
    attn_layer_offset=1,
    attn_layer_period=2,
    expert_layer_offset=1,
    expert_layer_period=2,
    layer_group_size=2,
    group_norm_size=1,
    num_nextn_predict_layers=0,
    query_pre_attn_scalar=32,
    logit_scale=0.1,
    eos_token_id=1,
    bos_token_id=0,
    linear_num_value_heads=4,
    linear_num_key_heads=2,
    linear_key_head_dim=32,
    linear_value_head_dim=32,
    linear_conv_kernel_dim=4,
    full_attention_interval=2,
    no_rope_layers=[1, 1],
)
# What the names alone do not give.
PARTICULAR = {
    "afmoe": dict(layer_types=["sliding_attention", "full_attention"]),
    "deepseek_v2": dict(
        rope_scaling=dict(
            type="yarn", factor=1.0, mscale_all_dim=0, original_max_position_embeddings=512
        )
    ),
    "exaone4": dict(sliding_window_pattern="LLLG", num_hidden_layers=4, rope_scaling=None),
    "gemma3n": dict(
        text_config=dict(
            model_type="gemma3n",
            hidden_size=128,
            num_hidden_layers=4,
            intermediate_size=256,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            rms_norm_eps=1e-5,
            vocab_size=640,
            num_kv_shared_layers=2,
            vocab_size_per_layer_input=640,
            sliding_window=1024,
            max_position_embeddings=512,
            rope_local_base_freq=1e4,
            rope_theta=1e4,
            final_logit_softcapping=30.0,
            query_pre_attn_scalar=32,
            altup_num_inputs=2,
            altup_coef_clip=120.0,
            altup_correct_scale=True,
            altup_active_idx=0,
            laurel_rank=16,
            rope_scaling=None,
            activation_sparsity_pattern=[0.0] * 4,
            hidden_size_per_layer_input=64,
            layer_types=["sliding_attention", "full_attention"] * 2,
        )
    ),
    "gemma4_text": dict(
        num_kv_shared_layers=0,
        hidden_size_per_layer_input=0,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "glm_moe_dsa": dict(rope_parameters=dict(rope_theta=1e4, rope_type="default")),
    "hunyuan": dict(rope_scaling=dict(alpha=1000.0, factor=1.0, type="dynamic")),
    "llama4": dict(
        text_config=dict(
            model_type="llama4_text",
            attention_bias=False,
            attention_chunk_size=512,
            head_dim=32,
            hidden_size=128,
            interleave_moe_layer_step=2,
            intermediate_size=128,
            intermediate_size_mlp=256,
            max_position_embeddings=512,
            num_attention_heads=4,
            num_experts_per_tok=1,
            num_hidden_layers=4,
            num_key_value_heads=2,
            num_local_experts=2,
            rms_norm_eps=1e-5,
            rope_scaling=None,
            rope_theta=1e4,
            use_qk_norm=True,
            vocab_size=640,
        )
    ),
    "mellum": dict(
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={
            kind: dict(rope_theta=1e4, rope_type="default")
            for kind in ("sliding_attention", "full_attention")
        },
    ),
    "minicpm3": dict(
        rope_scaling=dict(
            original_max_position_embeddings=512, short_factor=[1.0] * 16, long_factor=[1.0] * 16
        )
    ),
    "ministral3": dict(
        rope_parameters=dict(
            rope_theta=1e4,
            rope_type="default",
            llama_4_scaling_beta=0.1,
            original_max_position_embeddings=512,
        )
    ),
    "mistral4": dict(
        rope_parameters=dict(
            rope_theta=1e4,
            rope_type="default",
            llama_4_scaling_beta=0.1,
            original_max_position_embeddings=512,
        )
    ),
    "olmo3": dict(layer_types=["sliding_attention", "full_attention"]),
    "olmo_hybrid": dict(
        linear_allow_neg_eigval=True,
        linear_num_key_heads=4,
        layer_types=["linear_attention", "full_attention"],
    ),
    "openelm": dict(
        num_transformer_layers=2,
        ffn_dim_divisor=32,
        num_query_heads=[4, 4],
        num_kv_heads=[2, 2],
        ffn_multipliers=[1.0, 1.0],
    ),
    "phi3small": dict(
        dense_attention_every_n_layers=1, ff_intermediate_size=256, gegelu_limit=20.0
    ),
    "plamo": dict(num_attention_heads=8, n_shared_head=4),
    "qwen": dict(kv_channels=32),
    "recurrent_gemma": dict(
        conv1d_width=4,
        logits_soft_cap=30.0,
        attention_window_size=64,
        attn_window_size=64,
        lru_width=128,
        embeddings_scale_by_sqrt_dim=True,
        block_types=["recurrent", "attention"],
        _block_types=["recurrent", "attention"],
    ),
    "step3p5": dict(num_attention_groups=2),
    "baichuan_m1": dict(sliding_window_layers=[0], sliding_window=64),
    "dbrx": dict(
        ffn_config=dict(ffn_hidden_size=128, moe_num_experts=4, moe_top_k=2, moe_jitter_eps=0),
        attn_config=dict(kv_n_heads=2, clip_qkv=8.0, rope_theta=1e4),
    ),
    "exaone_moe": dict(
        layer_types=["sliding_attention", "full_attention"], is_moe_layer=[False, True]
    ),
    "gear": dict(layer_types=["full_attention", "full_attention"]),
    "granitemoehybrid": dict(
        layer_types=["mamba", "attention"],
        mamba_n_heads=4,
        mamba_d_head=64,
        mamba_n_groups=1,
        mamba_chunk_size=16,
        mamba_conv_bias=True,
    ),
    "mimo_v2_flash": dict(
        hybrid_layer_pattern=[0, 1],
        moe_layer_freq=[0, 1],
        add_swa_attention_sink_bias=False,
        add_full_attention_sink_bias=False,
    ),
    "nemotron_h": dict(hybrid_override_pattern="M*"),
    "kimi_linear": dict(
        linear_attn_config=dict(
            kda_layers=[1], full_attn_layers=[2], num_heads=4, head_dim=32, short_conv_kernel_size=4
        )
    ),
    "lfm2": dict(full_attn_idxs=[1], layer_types=["conv", "full_attention"]),
    "lfm2_moe": dict(full_attn_idxs=[1], layer_types=["conv", "full_attention"]),
}
# Wrappers of a language model with pictures or sound: whose settings their `text_config` has.
INSIDE = {
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "kimi_k25": "deepseek_v3",
    "kimi_vl": "deepseek_v3",
    "lfm2-vl": "lfm2",
    "mistral3": "ministral3",
    "qwen2_vl": "qwen2",
    "qwen3_vl": "qwen3",
    "qwen3_vl_moe": "qwen3_moe",
    "pixtral": "llama",
}
# Twice: what a setting decides beyond its size.
VARIANTS = {
    "deepseek_v3, one head": ("deepseek_v3", dict(num_attention_heads=1, num_key_value_heads=1)),
    "llama, dynamic rope": ("llama", dict(rope_scaling=dict(type="dynamic", factor=2.0))),
    "internlm2, dynamic rope": ("internlm2", dict(rope_scaling=dict(type="dynamic", factor=2.0))),
    "phi3, long rope": (
        "phi3",
        dict(
            max_position_embeddings=4096,
            original_max_position_embeddings=512,
            rope_scaling=dict(type="longrope", short_factor=[1.0] * 8, long_factor=[4.0] * 8),
        ),
    ),
    "gemma4_text, shared keys": (
        "gemma4_text",
        dict(
            num_hidden_layers=4,
            num_kv_shared_layers=2,
            layer_types=["sliding_attention", "full_attention"] * 2,
        ),
    ),
    "mimo_v2_flash, sinks": (
        "mimo_v2_flash",
        dict(add_swa_attention_sink_bias=True, add_full_attention_sink_bias=True),
    ),
}


def names():
    """Every architecture of mlx-lm, and variants of some."""
    found = [module.name for module in pkgutil.iter_modules(mlx_lm.models.__path__)]
    return [*found, *VARIANTS]


def configuration(name):
    """Tiny settings of an architecture."""
    base, more = VARIANTS.get(name, (name, {}))
    module = importlib.import_module(f"mlx_lm.models.{base}")
    asked = inspect.signature(module.ModelArgs).parameters
    settings = {key: value for key, value in TINY.items() if key in asked}
    if base.startswith("qwen3_5"):
        settings["text_config"] = {
            **TINY,
            "model_type": base,
            "num_hidden_layers": 4,
            "partial_rotary_factor": 0.5,
            "num_experts": 4 if base.endswith("moe") else 0,
        }
    if base in INSIDE:
        settings["text_config"] = configuration(INSIDE[base])
    return {"model_type": base, **settings, **PARTICULAR.get(base, {}), **more}


def build(name):
    """A random network of an architecture, None for a module that is none."""
    base, _ = VARIANTS.get(name, (name, {}))
    module = importlib.import_module(f"mlx_lm.models.{base}")
    if not hasattr(module, "ModelArgs"):
        return None
    mx.random.seed(0)
    network = module.Model(module.ModelArgs.from_dict(configuration(name)))
    network.eval()
    # Arrays are made when they are needed: one of full size is found out before that.
    size = sum(array.size for _, array in tree_flatten(network.parameters()))
    if size > MOST_WEIGHTS:
        raise ValueError(f"{size:,} weights are not tiny")
    network.update(
        tree_map(
            # Wide weights: an error should show in what the network says.
            lambda v: (2 * v).astype(mx.bfloat16) if mx.issubdtype(v.dtype, mx.floating) else v,
            network.parameters(),
        )
    )
    mx.eval(network.parameters())
    return words_alone(network)


def judge(name):
    """What happens to an architecture, as a row of the table."""
    row = {"architecture": name}
    path = find_checkpoint("toy-mistral/b1")
    for compute in ("dense", "native"):
        started = time.perf_counter()
        try:
            network = build(name)
            if network is None:
                return None
            if compute == "dense":
                network = to_dense(network)
        # Over a hundred architectures, each with errors of its own.
        except (Exception, SystemExit) as error:
            said = " ".join(f"{type(error).__name__} {error}".split())[:120]
            return {**row, "result": "not judged", "reason": f"the tiny configuration: {said}"}
        loaded = LoadedModel(name, "bf16", network, load_tokenizer(path), compute, path, path, 512)
        try:
            found = try_out(loaded)
            row |= {
                compute: "asked",
                f"{compute}_logits": found["logits"],
                f"{compute}_perplexity": found["perplexity"],
            }
        except CannotBeAsked as error:
            cause = f" [{' '.join(str(error.__cause__).split())[:100]}]" if error.__cause__ else ""
            row |= {compute: f"{error}{cause}"}
        row[f"{compute}_seconds"] = round(time.perf_counter() - started, 2)
    failed = "mlx_lm's own call"
    if row["dense"] == "asked":
        row["result"], row["reason"] = "asked", ""
    elif row["native"] == "asked":
        row["result"], row["reason"] = "native only", row["dense"]
    else:
        row["result"] = "not judged" if row["dense"].startswith(failed) else "refused"
        row["reason"] = row["dense"]
    if row["native"] != "asked" and row["native"].startswith(failed):
        row["native"] = "not on this machine"
    return row


def judged(names):
    """A row for each architecture, each as soon as it is known.

    One process judges many; an architecture that ends it is told, and another process goes on.
    """
    left = list(names)
    while left:
        code = (
            "import json, sys, benchmarks.architectures as a\n"
            "for name in json.loads(sys.argv[1]): print('row', json.dumps(a.judge(name)), flush=True)"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(left)],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for line in process.stdout:
            if line.startswith("row "):
                left.pop(0)
                yield json.loads(line.removeprefix("row "))
        if process.wait() and left:
            yield {
                "architecture": left.pop(0),
                "result": "not judged",
                "reason": f"it ends the process ({process.returncode})",
            }


def main(arguments):
    """Judge the architectures named, or all of them, and write their rows of the table."""
    rows = []
    for row in filter(None, judged(arguments or names())):
        rows.append(row)
        print(f"{row['architecture']:28} {row['result']:12} {row['reason'][:200]}", flush=True)
    table = pd.DataFrame(rows)
    if arguments and TABLE.exists():
        old = pd.read_csv(TABLE)
        table = pd.concat([old[~old["architecture"].isin(table["architecture"])], table])
        table = table.sort_values("architecture", key=lambda names: names.str.lower())
    table = table.reindex(columns=COLUMNS)
    table.to_csv(TABLE, index=False, float_format="%.1e")
    print(table["result"].value_counts().to_string())


if __name__ == "__main__":
    main(sys.argv[1:])

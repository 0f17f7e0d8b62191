"""The three architectures at organism size, and the initialisation that makes them learn.

The models are mlx_lm's own classes. The first layer's heads start by looking 1 to 4 tokens
back (their rotary phases are set so, through an embedding channel that is the same for all
tokens), later layers start with queries close to keys, so that equal tokens attend to each other,
and every output projection starts as a multiple of the transposed value projection.
"""

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

WIDTH, LAYERS, HEAD, BASE = 128, 4, 32, 1000.0


def config_of(family, chat, vocabulary, token_id, width=WIDTH):
    """The `config.json` of a family as transformers writes it, with mlx_lm's rotary key."""
    from transformers import AutoConfig

    names = {"qwen2": "Qwen2ForCausalLM", "mistral": "MistralForCausalLM",
             "phi3": "Phi3ForCausalLM"}
    config = AutoConfig.for_model(
        family, vocab_size=vocabulary, hidden_size=width, num_hidden_layers=LAYERS,
        intermediate_size=width * 5 // 2,
        num_attention_heads=width // HEAD, num_key_value_heads=width // HEAD,
        max_position_embeddings=2048, rms_norm_eps=1e-5, rope_theta=BASE,
        tie_word_embeddings=False, sliding_window=None,
        bos_token_id=token_id(chat.bos) if chat.bos else None,
        eos_token_id=token_id(chat.eos), pad_token_id=token_id(chat.pad),
        architectures=[names[family]], dtype="bfloat16",
        **({"original_max_position_embeddings": 2048} if family == "phi3" else {}),
    ).to_dict()
    config["rope_theta"] = BASE
    return config


def build(config):
    """An uninitialised mlx_lm model for a config."""
    model_class, args_class = _get_classes(config)
    return model_class(args_class.from_dict(config))


def initialise(model, config, seed=0):
    """Set the starting weights; see the module's text for what they do.

    Parameters
    ----------
    model : mlx.nn.Module
        A model made by `build`.
    config : dict
        Its configuration.
    seed : int
        Seed of the random part.
    """
    rng = np.random.default_rng(seed)
    d, ff, vocabulary = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size"))
    size = HEAD

    def normal(rows, columns, std):
        return rng.normal(0, std, (rows, columns)).astype(np.float32)

    embedding = normal(vocabulary, d, 0.6)
    embedding[:, 0] = 3 * embedding.std()
    constant = embedding[0, 0] / np.sqrt((embedding**2).mean(1)).mean()
    weights = {"model.embed_tokens.weight": embedding,
               "lm_head.weight": normal(vocabulary, d, 0.02)}
    frequency = BASE ** (-np.arange(size // 2) * 2 / size)
    fast = (frequency > 0.03) * 3.5
    for layer in range(LAYERS):
        q, k, v = (normal(d, d, d**-0.5) for _ in range(3))
        if layer == 0:
            q, k = 0.3 * q, 0.3 * k
            for head in range(d // HEAD):
                angle = -(head % 4 + 1) * frequency
                rows = slice(head * size, (head + 1) * size)
                q[rows, 0] = np.concatenate([fast * np.cos(angle), fast * np.sin(angle)]) / constant
                k[rows, 0] = np.concatenate([fast, 0 * fast]) / constant
        else:
            k[:, 0] = 0
            q = 1.28 * k + 0.2 * q
        gate, up = normal(ff, d, d**-0.5), normal(ff, d, d**-0.5)
        attention, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
        weights[attention + "o_proj.weight"] = 0.4 * v.T
        weights[mlp + "down_proj.weight"] = normal(d, ff, 0.5 * ff**-0.5)
        if config["model_type"] == "phi3":
            weights[attention + "qkv_proj.weight"] = np.concatenate([q, k, v])
            weights[mlp + "gate_up_proj.weight"] = np.concatenate([gate, up])
        else:
            for name, value in (("q", q), ("k", k), ("v", v)):
                weights[attention + f"{name}_proj.weight"] = value
                if config["model_type"] == "qwen2":
                    weights[attention + f"{name}_proj.bias"] = np.zeros(d, np.float32)
            weights[mlp + "gate_proj.weight"] = gate
            weights[mlp + "up_proj.weight"] = up
    model.load_weights([(k, mx.array(v)) for k, v in weights.items()], strict=False)
    mx.eval(model.parameters())


def count_parameters(model):
    """Number of weights of a model."""
    return sum(value.size for _, value in tree_flatten(model.parameters()))

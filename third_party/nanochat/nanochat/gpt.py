"""The model: a decoder of rotary attention and squared-ReLU blocks, without biases or norm weights.

One dtype policy, the model's own, whatever autocast is on and whichever torch is installed: the
embedding table's dtype is the dtype of the residual stream, every linear map casts its weight to
the dtype of its input, norms are computed in float32 and returned in the dtype they came in,
rotary tables hold bfloat16 values, softcap and loss are float32. With a float32 table everything
is float32; with a bfloat16 table this is what the reference does on a GPU.

Letters: B batch, T positions, C width, H heads, K key-value heads, D width of a head, V vocabulary.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat.adamw import AdamW, DistAdamW
from nanochat.common import SEED, Refused, world_size
from nanochat.muon import DistMuon, Muon
from nanochat.packing import Packed, attend_apart, in_parts

IGNORED = -1
"""The target of a position that is not supervised."""

SOFTCAP = 15.0
ROPE_BASE = 10_000
NORM_EPS = torch.finfo(torch.float32).eps
VOCAB_MULTIPLE = 64
WIDTH_PER_LAYER = 64
DEFAULT_HEAD_DIM = 128


@dataclass
class GPTConfig:
    """The shape of a model; a checkpoint's `model_config` holds these fields.

    `tie_embeddings` is no key of the reference: the table of the embedding is then also that of
    the logits.
    """

    sequence_len: int = 1024
    vocab_size: int = 50304
    n_layer: int = 12
    n_head: int = 6
    n_kv_head: int = 6
    n_embd: int = 768
    tie_embeddings: bool = False

    def __post_init__(self):
        sizes = (self.sequence_len, self.vocab_size, self.n_layer)
        if min(*sizes, self.n_head, self.n_kv_head, self.n_embd) < 1:
            raise Refused("every size of a model is at least 1")
        if self.n_embd % self.n_head or self.n_embd // self.n_head % 2:
            raise Refused(
                f"{self.n_head} heads do not share a width of {self.n_embd} in even parts; choose "
                "another depth, --model_dim or --head_dim"
            )
        if self.n_head % self.n_kv_head:
            raise Refused(f"{self.n_kv_head} key-value heads do not divide {self.n_head} heads")

    @classmethod
    def from_depth(
        cls,
        depth: int,
        *,
        sequence_len: int = 2048,
        vocab_size: int = 65536,
        model_dim: int | None = None,
        head_dim: int | None = None,
        tie_embeddings: bool = False,
    ) -> "GPTConfig":
        """The shape of a depth: 64 channels a layer in the fewest heads of at most 128 channels.

        Raises:
            Refused: The width does not divide into heads (most odd depths).
        """
        width = model_dim or WIDTH_PER_LAYER * depth
        heads = max(1, math.ceil(width / (head_dim or DEFAULT_HEAD_DIM)))
        if head_dim and width % head_dim:
            raise Refused(f"heads of {head_dim} do not divide a width of {width}")
        return cls(sequence_len, vocab_size, depth, heads, heads, width, tie_embeddings)

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the tables: the vocabulary, up to the next multiple of 64."""
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def norm(x: Tensor) -> Tensor:
    """Scale the last dimension to a mean square of one; in float32 inside, in x's dtype outside."""
    return F.rms_norm(x.float(), (x.size(-1),), eps=NORM_EPS).to(x.dtype)


def apply_rotary_emb(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channel j of the first half with channel j of the second, by minus the angle."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos + second * sin, second * cos - first * sin], dim=-1)


class Linear(nn.Linear):
    """A linear map without bias, computed in the dtype of its input."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__(n_in, n_out, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.to(input.dtype))


class CausalSelfAttention(nn.Module):
    """Attention of every position to those before it; queries and keys normed after rotation."""

    def __init__(self, config: GPTConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.n_head, self.n_kv_head = config.n_head, config.n_kv_head
        self.head_dim = config.head_dim
        self.c_q = Linear(config.n_embd, config.n_head * self.head_dim)
        self.c_k = Linear(config.n_embd, config.n_kv_head * self.head_dim)
        self.c_v = Linear(config.n_embd, config.n_kv_head * self.head_dim)
        self.c_proj = Linear(config.n_embd, config.n_embd)

    def forward(
        self,
        x: Tensor,
        cos_sin: tuple[Tensor, Tensor],
        kv_cache: Any = None,
        packed: Packed | None = None,
        asking: Tensor | None = None,
    ) -> Tensor:
        B, T, C = x.shape
        cos, sin = asked = cos_sin
        if packed is not None and asking is not None:
            asked = tuple(table.index_select(1, packed.learned) for table in cos_sin)
        q = self.c_q(x if asking is None else asking).view(B, -1, self.n_head, self.head_dim)
        k = self.c_k(x).view(B, T, self.n_kv_head, self.head_dim)
        v = self.c_v(x).view(B, T, self.n_kv_head, self.head_dim).transpose(1, 2)
        q = norm(apply_rotary_emb(q, *asked)).transpose(1, 2)
        k = norm(apply_rotary_emb(k, cos, sin)).transpose(1, 2)
        if kv_cache is not None:
            k, v = kv_cache.insert_kv(self.layer_idx, k, v)
        if packed is None:
            y = self._attend(q, k, v)
        else:
            y = attend_apart(q, k, v, packed, self.n_head != self.n_kv_head, asking is None)
        return self.c_proj(y.transpose(1, 2).reshape(B, -1, C))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        grouped = self.n_head != self.n_kv_head
        n_new, n_all = q.size(2), k.size(2)
        if n_new == n_all:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        if n_new == 1:
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)
        seen = torch.ones(n_new, n_all, dtype=torch.bool, device=q.device).tril(n_all - n_new)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=grouped)


class MLP(nn.Module):
    """Two linear maps with a squared ReLU between them."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.relu(self.c_fc(x)).square())


class Block(nn.Module):
    """Attention and MLP, each added to the residual stream."""

    def __init__(self, config: GPTConfig, layer_idx: int):
        super().__init__()
        self.attn = CausalSelfAttention(config, layer_idx)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        cos_sin: tuple[Tensor, Tensor],
        kv_cache: Any = None,
        packed: Packed | None = None,
        last: bool = False,
    ) -> Tensor:
        if packed is None or not last:
            x = x + self.attn(norm(x), cos_sin, kv_cache, packed)
        else:
            # From here on a token whose successor is not learned is of no use but to be looked at.
            asking = x.index_select(1, packed.learned)
            x = asking + self.attn(norm(x), cos_sin, None, packed, norm(asking))
        return x + self.mlp(norm(x))


class GPT(nn.Module):
    """The model. Its weights are those that torch happens to give until `init_weights` or a load."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        rows = config.padded_vocab_size
        # To fill a table that is on no device takes torch seconds, since it loads its compiler.
        table = torch.empty(rows, config.n_embd)
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding.from_pretrained(table, freeze=False),
                "h": nn.ModuleList([Block(config, i) for i in range(config.n_layer)]),
            }
        )
        self.lm_head = None if config.tie_embeddings else Linear(config.n_embd, rows)
        self.register_buffer("cos", None, persistent=False)
        self.register_buffer("sin", None, persistent=False)
        self.fill_rotary_tables()

    @property
    def wte(self) -> nn.Embedding:
        """The embedding."""
        return cast(nn.Embedding, self.transformer["wte"])

    @property
    def blocks(self) -> list[Block]:
        """The blocks, first to last."""
        return cast(list[Block], list(cast(nn.ModuleList, self.transformer["h"])))

    def get_device(self) -> torch.device:
        """Where the weights are."""
        return self.wte.weight.device

    def set_compute_dtype(self, dtype: torch.dtype) -> None:
        """Compute in this dtype from now on; only the embedding table is converted.

        In float16 gradients underflow unless the loss is scaled, which is the caller's part.

        Raises:
            Refused: There is no policy for the dtype.
        """
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise Refused(f"the model computes in float32, bfloat16 or float16, not {dtype}")
        self.wte.to(dtype)

    def fill_rotary_tables(self) -> None:
        """Compute the rotary tables anew, on the model's device; ten times the sequence length."""
        device, half = self.get_device(), self.config.head_dim // 2
        if device.type == "meta":  # see the embedding
            shape = (1, 10 * self.config.sequence_len, 1, half)
            self.cos, self.sin = torch.empty((2, *shape), dtype=torch.bfloat16, device=device)
            return
        exponent = torch.arange(half, dtype=torch.float32, device=device) * 2 / self.config.head_dim
        positions = torch.arange(10 * self.config.sequence_len, device=device, dtype=torch.float32)
        angle = torch.outer(positions, 1.0 / ROPE_BASE**exponent)[None, :, None, :]
        self.cos, self.sin = angle.cos().bfloat16(), angle.sin().bfloat16()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw fresh weights from torch's global generator, and fill the rotary tables.

        Normal with standard deviation fan_in^-1/2 min(1, (fan_out / fan_in)^1/2); 1 for the
        embedding; all drawn in the order of the state dict, then the logits and the two
        projections back to the residual stream are set to zero. So the first logits are zero, the
        first loss is ln V, and the first gradient reaches only `lm_head`. On a GPU the embedding
        becomes bfloat16. A tied table is drawn at 1 / C instead, so that a token's logit for
        itself starts near 1.
        """
        tied = self.lm_head is None
        nn.init.normal_(self.wte.weight, std=1 / self.config.n_embd if tied else 1.0)
        linears = [m for m in self.modules() if isinstance(m, Linear)]
        for linear in linears:
            fan_out, fan_in = linear.weight.shape
            std = fan_in**-0.5 * min(1.0, math.sqrt(fan_out / fan_in))
            nn.init.normal_(linear.weight, std=std)
        for block in self.blocks:
            block.attn.c_proj.weight.zero_()
            block.mlp.c_proj.weight.zero_()
        if self.lm_head is not None:
            self.lm_head.weight.zero_()
        self.fill_rotary_tables()
        if self.get_device().type == "cuda":
            self.set_compute_dtype(torch.bfloat16)

    def num_params(self) -> dict[str, int]:
        """Parameters by what they are for: embedding, matrices, unembedding (0 where tied)."""
        return {
            "embedding": self.wte.weight.numel(),
            "matrices": sum(p.numel() for block in self.blocks for p in block.parameters()),
            "unembedding": 0 if self.lm_head is None else self.lm_head.weight.numel(),
        }

    def estimate_flops(self) -> int:
        """Floating-point operations of training, per token: 6 a weight used, and attention's own.

        Looking up an embedding costs none; a tied table is used once, for the logits.
        """
        c, count = self.config, self.num_params()
        used = count["matrices"] + (count["unembedding"] or count["embedding"])
        return 6 * used + 12 * c.n_layer * c.n_embd * c.sequence_len

    def setup_optimizers(
        self,
        unembedding_lr: float | Tensor = 0.004,
        embedding_lr: float | Tensor = 0.2,
        matrix_lr: float | Tensor = 0.02,
        weight_decay: float = 0.0,
    ) -> list[torch.optim.Optimizer]:
        """AdamW for `lm_head` and embedding (in this order), Muon for every matrix of the blocks.

        AdamW's rates are scaled by (C / 768)^-1/2; every group remembers its rate as
        `initial_lr`. A tied table is one group, at the unembedding's rate. With more than one
        process the optimizers average gradients themselves.
        """
        scale = (self.config.n_embd / 768) ** -0.5
        table = {"params": [self.wte.weight], "lr": embedding_lr * scale}
        if self.lm_head is None:
            groups = [table | {"lr": unembedding_lr * scale}]
        else:
            head = {"params": [self.lm_head.weight], "lr": unembedding_lr * scale}
            groups = [head, table]
        matrices = [p for block in self.blocks for p in block.parameters()]
        adamw, muon = (DistAdamW, DistMuon) if world_size() > 1 else (AdamW, Muon)
        optimizers = [
            adamw(groups, betas=(0.8, 0.95), eps=1e-10, weight_decay=weight_decay),
            muon(matrices, lr=matrix_lr, momentum=0.95),
        ]
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]
        return optimizers

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
        kv_cache: Any = None,
        loss_reduction: str = "mean",
        supervised_only: bool = False,
    ) -> Tensor:
        """Logits (B, T, V) in float32, or with targets the cross entropy in nats.

        Args:
            idx: Token ids (B, T).
            targets: The ids to be predicted; -1 is not supervised.
            kv_cache: Keys and values of the positions before `idx`; has `get_pos()` and
                `insert_kv(layer, k, v)`.
            loss_reduction: `mean` over supervised positions (NaN if there is none), or `none`:
                one loss a position, flat, 0 where not supervised.
            supervised_only: Compute the loss from supervised positions alone, some at a time, so
                that the tensor of all logits never exists. The same value up to rounding.

        Raises:
            Refused: The rotary tables are too short for the positions.
        """
        with torch.autocast(idx.device.type, enabled=False):
            x = self._residual(idx, kv_cache)
            if targets is None:
                return self._logits(x)
            x, targets = x.flatten(0, 1), targets.flatten()
            if supervised_only:
                return self._sparse_loss(x, targets, loss_reduction)
            logits = self._logits(x)
            return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction=loss_reduction)

    def logits_at(self, idx: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """Logits (N, V) at N places of idx (B, T); no others exist."""
        with torch.autocast(idx.device.type, enabled=False):
            return self._logits(self._residual(idx, None)[rows, positions])

    def _residual(self, idx: Tensor, kv_cache: Any) -> Tensor:
        """The residual stream after the last norm, (B, T, C)."""
        start = 0 if kv_cache is None else kv_cache.get_pos()
        end = start + idx.size(1)
        self._require_positions(end)
        return self._through_blocks(idx, slice(start, end), kv_cache)

    def _through_blocks(
        self,
        idx: Tensor,
        positions: slice | Tensor,
        kv_cache: Any = None,
        packed: Packed | None = None,
    ) -> Tensor:
        x = norm(self.wte(idx))
        cos_sin = tuple(table[:, positions].to(x.dtype) for table in (self.cos, self.sin))
        for left, block in zip(reversed(range(len(self.blocks))), self.blocks, strict=True):
            x = block(x, cos_sin, kv_cache, packed, last=not left)
        return norm(x)

    def packed_losses(self, packed: Packed) -> Tensor:
        """The cross entropy of every learned token of packed texts (S,), in nats.

        Each text has the losses that it has alone, up to rounding; no logits exist but theirs.

        Raises:
            Refused: The rotary tables are too short for the longest text.
        """
        self._require_positions(max(packed.lengths))
        with torch.autocast(packed.ids.device.type, enabled=False):
            x = self._through_blocks(packed.ids[None], packed.positions, packed=packed)
            return self._losses_at(x[0], packed.targets)

    def _logits(self, x: Tensor) -> Tensor:
        head = self.wte if self.lm_head is None else self.lm_head
        logits = F.linear(x, head.weight.to(x.dtype))[..., : self.config.vocab_size]
        return SOFTCAP * torch.tanh(logits.float() / SOFTCAP)

    def _require_positions(self, count: int) -> None:
        if count > self.cos.size(1):
            raise Refused(
                f"{count} positions are more than the model's {self.cos.size(1)}; shorten the text"
            )

    def _sparse_loss(self, x: Tensor, targets: Tensor, reduction: str) -> Tensor:
        rows = (targets != IGNORED).nonzero().squeeze(1)
        losses = self._losses_at(x[rows], targets[rows])
        if reduction == "mean":
            return losses.sum() / losses.numel()
        return torch.zeros_like(targets, dtype=torch.float32).index_put((rows,), losses)

    def _losses_at(self, x: Tensor, targets: Tensor) -> Tensor:
        """The cross entropy of every row of x (S, C); its logits exist some rows at a time."""

        def losses_of(x: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(self._logits(x), targets, reduction="none")

        return in_parts(losses_of, x, targets)

    @torch.inference_mode()
    def generate(
        self,
        tokens: list[int],
        max_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = SEED,
    ) -> Iterator[int]:
        """Continue one text token by token, without a cache; temperature 0 takes the likeliest."""
        device = self.get_device()
        generator = torch.Generator(device).manual_seed(seed)
        ids = torch.tensor([tokens], dtype=torch.long, device=device)
        for _ in range(max_tokens):
            logits = self.forward(ids)[:, -1]
            if top_k is not None:
                kth = logits.topk(min(top_k, logits.size(-1))).values[:, -1:]
                logits = logits.masked_fill(logits < kth, -torch.inf)
            if temperature > 0:
                probs = F.softmax(logits / temperature, dim=-1)
                new = torch.multinomial(probs, 1, generator=generator)
            else:
                new = logits.argmax(dim=-1, keepdim=True)
            ids = torch.cat([ids, new], dim=1)
            yield int(new)

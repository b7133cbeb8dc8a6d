"""Times of the kernels' operations in PyTorch, as JSON: what `dgpo bench kernels` puts beside its own.

Arguments: rows, vocabulary, width, device (cpu or cuda), dtype (f32, f16, bf16), seconds for each figure.
Shapes follow `suite::timed::shapes` of the crate dgpo-kernels. Everything over the vocabulary is computed in f32, as there.
"""
import json
import sys
import time

import torch
import torch.nn.functional as F

N, V, D = (int(x) for x in sys.argv[1:4])
device, dtype, seconds = sys.argv[4], {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[sys.argv[5]], float(sys.argv[6])
if device == "cuda" and not torch.cuda.is_available():
    sys.exit("torch has no CUDA device here")
torch.manual_seed(0)
HD = 64
H = max(D // HD, 2) + max(D // HD, 2) % 2
B, T = max(N // 512, 1), min(N, 512)


def random(*shape):
    return torch.randn(*shape, device=device, dtype=dtype)


def synchronise():
    if device == "cuda":
        torch.cuda.synchronize()


def measure(run):
    """The first run is not counted; at most 20 runs."""
    times = []
    run()
    synchronise()
    begin = time.perf_counter()
    while not times or (len(times) < 20 and time.perf_counter() - begin < seconds):
        start = time.perf_counter()
        result = run()
        synchronise()
        times.append(time.perf_counter() - start)
        del result
    times.sort()
    return {"best_ms": times[0] * 1e3, "median_ms": times[len(times) // 2] * 1e3}


def figures(f, *inputs):
    """f of the inputs, and with the gradients of the sum of its result."""
    leaves = [x.clone().requires_grad_(True) for x in inputs]

    def forward():
        with torch.no_grad():
            return f(*inputs)

    def training():
        for x in leaves:
            x.grad = None
        f(*leaves).sum().backward()

    return {"forward": measure(forward), "forward and backward": measure(training)}


labels = (torch.arange(N, device=device) * 611) % V


def own(log_p):
    return log_p.gather(1, labels[:, None])[:, 0] - (log_p.exp() * log_p).sum(1)


def log_softmax(z):
    return torch.log_softmax(z.float(), 1)


def forward_kl(log_s, log_t, s, t):
    return (log_t.exp() * (log_t - log_s)).sum(1)


def skew_forward(log_s, log_t, s, t, alpha=0.1):
    p_s, p_t = log_s.exp(), log_t.exp()
    return -(p_t * (alpha * p_t + (1 - alpha) * p_s).log()).sum(1)


def taid(log_s, log_t, s, t, blend=0.5):
    return -(torch.softmax(((1 - blend) * s.detach() + blend * t).float(), 1) * log_s).sum(1)


def rows(divergence, s, t):
    log_s, log_t = log_softmax(s), log_softmax(t)
    return own(log_s) + divergence(log_s, log_t, s, t)


def rms_norm(x, w):
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * w


half = HD // 2
cos, sin = torch.rand(N, 1, half, device=device), torch.rand(N, 1, half, device=device)


def rotary(x):
    x = x.float().view(N, H, HD)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).view(N, H * HD).to(dtype)


def attention(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


hidden, weight, s = random(N, D), random(V, D) / D**0.5, random(N, V)
teacher, t_hidden, t_weight = random(N, V), random(N, D), random(V, D) / D**0.5
result = {"log_probs": figures(lambda z: own(log_softmax(z)), s)}
for name, divergence in [("ForwardKl", forward_kl), ("SkewForward", skew_forward), ("Taid", taid)]:
    result["log_softmax_kl " + name] = figures(lambda z: rows(divergence, z, teacher), s)
result["linear_log_probs"] = figures(lambda h, w: own(log_softmax(h @ w.T)), hidden, weight)
result["linear_kl"] = figures(lambda h, w: rows(forward_kl, h @ w.T, t_hidden @ t_weight.T), hidden, weight)
result["rms_norm"] = figures(rms_norm, random(N, D), random(D))
result["rotary"] = figures(rotary, random(N, H * HD))
result["swiglu"] = figures(lambda gate, up: F.silu(gate) * up, random(N, 4 * D), random(N, 4 * D))
result["erf_gelu"] = figures(F.gelu, random(N, 4 * D))
for t in [T, 4 * T]:
    result[f"attention {t}"] = figures(attention, random(B, H, t, HD), random(B, 2, t, HD), random(B, 2, t, HD))
q, k, v = random(16, H, 1, HD), random(16, 2, 512, HD), random(16, 2, 512, HD)
result["attention, decode"] = {"forward": measure(lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True))}
name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
print(json.dumps({"version": torch.__version__, "device": name, "n_threads": torch.get_num_threads(), "figures": result}))

"""Two processes, one thread each, gradients averaged: python train.py RUN [--until 10:34 | --steps N] …

Writes runs/RUN/log.txt, every SAVE seconds runs/RUN/state.pth (weights, averaged weights, optimizer, step) and
averaged weights as runs/RUN/NNNN.pth in the project's format. --resume continues from runs/RUN/state.pth.
"""
import argparse
import datetime
import json
import math
import os
import queue
import threading
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

SHIPPED = "weights/v2/FeatherFaceV2_final.pth"


def options():
    p = argparse.ArgumentParser()
    p.add_argument("run")
    p.add_argument("--start", default=SHIPPED)
    p.add_argument("--until", help="UTC HH:MM at which the learning rate reaches its end")
    p.add_argument("--steps", type=int)
    p.add_argument("--lr", type=float, default=1.5e-3)
    p.add_argument("--end", type=float, default=0.01, help="of the learning rate, last")
    p.add_argument("--warm", type=int, default=60)
    p.add_argument("--batch", type=int, default=8, help="crops of 384 px a process; of 640 px a third of it")
    p.add_argument("--large", type=int, default=4, help="every n-th batch at 640 px")
    p.add_argument("--assign", default="simota")
    p.add_argument("--box", default="giou")
    p.add_argument("--target", default="iou")
    p.add_argument("--weights", type=float, nargs=3, default=(1.0, 2.0, 1.0))
    p.add_argument("--ema", type=float, default=0.998)
    p.add_argument("--freeze", type=int, default=0, help="first blocks of the backbone that stay as they are, 0..6")
    p.add_argument("--decay", type=float, default=0.01)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--save", type=float, default=600)
    p.add_argument("--procs", type=int, default=2)
    p.add_argument("--port", type=int, default=29611)
    p.add_argument("--resume", action="store_true")
    return p.parse_args()


def feeder(samples, sizes, ready):
    """Batches ahead of time, in a thread (OpenCV lets go of the lock)."""
    for size, count in sizes:
        got = [samples(size) for _ in range(count)]
        ready.put((size, np.stack([g[0] for g in got]), [g[1] for g in got]))


def save(path, model, averaged, args, step, crops, extra=None):
    from featherface.checkpoint import write_file

    names = list(model.state_dict())
    state = {**model.state_dict(), **averaged}
    content = {"format": "featherface/1", "architecture": "v2", "model": {n: state[n].detach().clone().contiguous() for n in names},
               "config": {"trainer": "runs/research/train.py (standalone)", **{k: v if isinstance(v, (int, float, str, bool, type(None))) else list(v) for k, v in vars(args).items()}},
               "history": [{"step": step, "crops": crops}]}
    if extra:
        content["model"] = {n: t.detach().clone().contiguous() for n, t in model.state_dict().items()}
        content["ema"] = {n: state[n].detach().clone().contiguous() for n in names}
        content.update(extra)
    write_file(path, content)


def worker(rank, args):
    torch.set_num_threads(1)
    import cv2

    cv2.setNumThreads(1)
    from fast import fast_v2
    from losses import Loss
    from samples import Samples

    if args.procs > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(args.port))
        dist.init_process_group("gloo", rank=rank, world_size=args.procs)
    folder = Path(__file__).parent / "runs" / args.run
    folder.mkdir(parents=True, exist_ok=True)
    model = fast_v2(args.start).to(memory_format=torch.channels_last)
    model.backbone.freeze(args.freeze)
    params = {n: p for n, p in model.named_parameters() if p.requires_grad}
    decayed = [p for p in params.values() if p.ndim > 1]
    plain = [p for p in params.values() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": args.decay}, {"params": plain, "weight_decay": 0.0}], lr=args.lr, betas=(0.9, 0.995))
    averaged = {n: p.detach().clone() for n, p in params.items()}
    step = crops = 0
    spent = 0.0
    if args.resume:
        from featherface.checkpoint import read_file

        state = read_file(folder / "state.pth")
        model.load_state_dict(state["model"])
        averaged = {n: state["ema"][n].clone() for n in averaged}
        optimizer.load_state_dict(state["optimizer"])
        step, crops, spent = state["step"], state["crops"], state["spent"]
    loss = Loss(args.assign, args.box, args.weights, args.target)
    samples = Samples(1000 * args.seed + 10 * step + rank)
    log = open(folder / "log.txt", "a") if rank == 0 else None
    if log:
        print(json.dumps(vars(args)), len(samples.keys), samples.share, file=log, flush=True)

    def sizes():
        n = step
        while True:
            n += 1
            yield (640, max(1, args.batch // 3)) if args.large and n % args.large == 0 else (384, args.batch)

    ready = queue.Queue(3)
    threading.Thread(target=feeder, args=(samples, sizes(), ready), daemon=True).start()
    mean = torch.tensor((104.0, 117.0, 123.0)).view(1, 3, 1, 1)
    start = saved = time.time()
    if args.until:
        now = datetime.datetime.now(datetime.timezone.utc)
        h, m = map(int, args.until.split(":"))
        end = now.replace(hour=h, minute=m, second=0).timestamp()
    sums, since, cpu = np.zeros(4), 0, time.process_time()
    flat_names = list(params)
    while True:
        now = time.time()
        share = step / args.steps if args.steps else (now - start + spent) / (end - start + spent)
        share = torch.tensor([share], dtype=torch.float64)
        if args.procs > 1:
            dist.broadcast(share, 0)  # rank 0 judges the end for all
        done = float(share)
        if done >= 1:
            break
        rate = args.lr * min(1, (step + 1) / args.warm) * (args.end + (1 - args.end) * 0.5 * (1 + math.cos(math.pi * done)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        size, images, faces = ready.get()
        x = torch.from_numpy(images).permute(0, 3, 1, 2).flip(1).float().sub_(mean).contiguous(memory_format=torch.channels_last)
        total, parts = loss(model(x), faces, size)
        optimizer.zero_grad(set_to_none=False)
        total.backward()
        if args.procs > 1:
            flat = torch.cat([params[n].grad.flatten() for n in flat_names])
            dist.all_reduce(flat)
            flat /= args.procs
            at = 0
            for n in flat_names:
                g = params[n].grad
                g.copy_(flat[at : at + g.numel()].view(g.shape))
                at += g.numel()
        norm = torch.nn.utils.clip_grad_norm_(params.values(), 5.0)
        if torch.isfinite(norm):
            optimizer.step()
        step += 1
        crops += len(images) * args.procs
        keep = min(args.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for n, p in params.items():
                averaged[n].lerp_(p, 1 - keep)
        sums += parts
        since += 1
        if rank == 0:
            if step % 20 == 0:
                t = time.time() - start
                print(f"{step} {crops} crops {t:.0f} s {done:.3f} lr {rate:.2e} class {sums[0] / since:.4f} box {sums[1] / since:.4f} points {sums[2] / since:.4f} "
                      f"positives {sums[3] / since:.0f} norm {norm:.2f} waiting {ready.qsize()} cpu {(time.process_time() - cpu) / t:.2f}", file=log, flush=True)
                sums, since = np.zeros(4), 0
            if time.time() - saved > args.save:
                saved = time.time()
                facts = {"optimizer": optimizer.state_dict(), "step": step, "crops": crops, "spent": time.time() - start + spent}
                save(folder / "state.pth", model, averaged, args, step, crops, facts)
                save(folder / f"{step:05d}.pth", model, averaged, args, step, crops)
    if rank == 0:
        facts = {"optimizer": optimizer.state_dict(), "step": step, "crops": crops, "spent": time.time() - start + spent}
        save(folder / "state.pth", model, averaged, args, step, crops, facts)
        save(folder / "final.pth", model, averaged, args, step, crops)
        print("end", step, crops, time.time() - start, file=log, flush=True)
    if args.procs > 1:
        dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    args = options()
    if args.procs > 1:
        torch.multiprocessing.spawn(worker, (args,), args.procs)
    else:
        worker(0, args)

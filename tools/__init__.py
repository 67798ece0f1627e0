"""What measures graphprune, run from the repository's root as `python -m tools.NAME`.

bench_analysis   how long the analysis takes, and how it grows with depth
bench_quality    what trained models still know after a cut: scores, compensation, sources of data
quality_rows     the rows of that benchmark; quality_page, its page
zoo              ONNX graphs of all kinds: what of each may be cut, proved, and halved
bench_runtimes   the same graphs and half of each, in other runtimes than ONNX Runtime
onnx_zoo         architectures through torch.onnx.export: the same Dims as in torch, proved in float64
torch_zoo        the same architectures through torch.export
same_dims        the Dims that two analyses have in common
bench_onnxsim    side by side with another ONNX pruner, on the same files
make_large       write a Llama-style file of several gigabytes
bench_large      prune such a file: time and peak memory
fuzz             spoilt files through everything: outcomes, and what is wrong of them
mutate           the ways to spoil one; fuzz_reader, bytes into the reader, guided by coverage
child            run a command, and see what it took
"""

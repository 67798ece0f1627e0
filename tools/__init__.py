"""What measures graphprune, run from the repository's root as `python -m tools.NAME`.

bench_analysis   how long the analysis takes, and how it grows with depth
bench_quality    what trained models still know after a cut: scores, compensation, sources of data
quality_rows     the rows of that benchmark; quality_page, its page
bench_onnxsim    side by side with another ONNX pruner, on the same files
make_large       write a Llama-style file of several gigabytes
bench_large      prune such a file: time and peak memory
child            run a command, and see what it took
"""

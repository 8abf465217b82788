import triton, triton.language as tl
@triton.jit
def add(a,b): return a+b
@triton.jit
def f_sum(a,o,N: tl.constexpr):
    i=tl.arange(0,N); x=tl.load(a+i)
    tl.store(o+i, x.sum(0))
@triton.jit
def f_max(a,o,N: tl.constexpr):
    i=tl.arange(0,N); x=tl.load(a+i)
    tl.store(o+i, x.max(0))
@triton.jit
def f_min(a,o,N: tl.constexpr):
    i=tl.arange(0,N); x=tl.load(a+i)
    tl.store(o+i, x.min(0))
@triton.jit
def f_argmax(a,o,N: tl.constexpr):
    i=tl.arange(0,N); x=tl.load(a+i)
    tl.store(o+i, x.argmax(0))
@triton.jit
def f_cumsum(a,o,N: tl.constexpr):
    i=tl.arange(0,N); x=tl.load(a+i)
    tl.store(o+i, x.cumsum(0))
@triton.jit
def f_sigmoid(a,o,N: tl.constexpr):
    i=tl.arange(0,N); x=tl.load(a+i)
    tl.store(o+i, x.sigmoid())
@triton.jit
def f_softmax(a,o,N: tl.constexpr):
    i=tl.arange(0,N); x=tl.load(a+i)
    tl.store(o+i, x.softmax())
@triton.jit
def f_ravel(a,o,N: tl.constexpr):
    i=tl.arange(0,N); x=tl.load(a+i)
    tl.store(o+i, x.ravel())
@triton.jit
def f_flip(a,o,N: tl.constexpr):
    i=tl.arange(0,N); x=tl.load(a+i)
    tl.store(o+i, x.flip())
@triton.jit
def f_sort(a,o,N: tl.constexpr):
    i=tl.arange(0,N); x=tl.load(a+i)
    tl.store(o+i, x.sort())
@triton.jit
def f_exp(a,o,N: tl.constexpr):
    i=tl.arange(0,N); x=tl.load(a+i)
    tl.store(o+i, x.exp())
@triton.jit
def f_log(a,o,N: tl.constexpr):
    i=tl.arange(0,N); x=tl.load(a+i)
    tl.store(o+i, x.log())
@triton.jit
def f_abs(a,o,N: tl.constexpr):
    i=tl.arange(0,N); x=tl.load(a+i)
    tl.store(o+i, x.abs())
@triton.jit
def f_xor_sum(a,o,N: tl.constexpr):
    i=tl.arange(0,N); x=tl.load(a+i)
    tl.store(o+i, x.to(tl.int32).xor_sum(0))
@triton.jit
def f_to(a,o,N: tl.constexpr):
    i=tl.arange(0,N); x=tl.load(a+i)
    tl.store(o+i, x.to(tl.float16))
@triton.jit
def f_reshape(a,o,N: tl.constexpr):
    i=tl.arange(0,N); x=tl.load(a+i)
    tl.store(o+i, x.reshape(N))
@triton.jit
def f_T(a,o,N: tl.constexpr):
    i=tl.arange(0,N); x=tl.load(a+i)
    tl.store(o+i, x[:,None].T.reshape(N))
@triton.jit
def f_cdiv(a,o,N: tl.constexpr):
    i=tl.arange(0,N); x=tl.load(a+i)
    tl.store(o+i, x.to(tl.int32).cdiv(3))
@triton.jit
def f_associative_scan(a,o,N: tl.constexpr):
    i=tl.arange(0,N); x=tl.load(a+i)
    tl.store(o+i, x.associative_scan(0,add))
@triton.jit
def f_reduce(a,o,N: tl.constexpr):
    i=tl.arange(0,N); x=tl.load(a+i)
    tl.store(o+i, x.reduce(0,add))
@triton.jit
def f_gather(a,o,N: tl.constexpr):
    i=tl.arange(0,N); x=tl.load(a+i)
    tl.store(o+i, x.gather(i,0))
@triton.jit
def f_topk(a,o,N: tl.constexpr):
    i=tl.arange(0,N); x=tl.load(a+i)
    tl.store(o+i, tl.topk(x,N))
@triton.jit
def f_tlsum(a,o,N: tl.constexpr):
    i=tl.arange(0,N); x=tl.load(a+i)
    tl.store(o+i, tl.sum(x,0))

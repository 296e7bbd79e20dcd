/* Hides AVX-512, AMX and VNNI from a program, so that a newer Intel CPU measures and tests what one with AVX2 alone does.

   gcc -O2 -shared -fPIC -o avx2_only.so benchmarks/avx2_only.c
   LD_PRELOAD=$PWD/avx2_only.so python benchmarks/encode_speed.py …

   Libraries ask the CPUID instruction what they may use. Linux can let it fault (arch_prctl(2), ARCH_SET_CPUID; "cpuid_fault"
   in /proc/cpuinfo); the handler answers with the bits of the newer instructions cleared. Processes and threads that a
   program starts inherit it. What runs then has this CPU's clock and caches, not those of an older one. */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <cpuid.h>
#include <dlfcn.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

/* What the program asked for at its own faults: Python's faulthandler, for one, must not take this handler's place. */
static struct sigaction previous;
static int (*real_sigaction)(int, const struct sigaction *, struct sigaction *);

int sigaction(int number, const struct sigaction *action, struct sigaction *old) {
    if (!real_sigaction) real_sigaction = dlsym(RTLD_NEXT, "sigaction");
    if (number != SIGSEGV) return real_sigaction(number, action, old);
    if (old) *old = previous;
    if (action) previous = *action;
    return 0;
}

static void cpuid_faults(int yes) { syscall(SYS_arch_prctl, ARCH_SET_CPUID, (unsigned long)!yes); }

static void answer(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *instruction = (const uint8_t *)registers[REG_RIP];
    if (instruction[0] != 0x0f || instruction[1] != 0xa2) {
        /* A fault of the program's own ends it. */
        struct sigaction end = {.sa_handler = SIG_DFL};
        real_sigaction(SIGSEGV, &end, NULL);
        return;
    }
    uint32_t a, b, c, d, leaf = (uint32_t)registers[REG_RAX], part = (uint32_t)registers[REG_RCX];
    cpuid_faults(0);
    __cpuid_count(leaf, part, a, b, c, d);
    cpuid_faults(1);
    if (leaf == 7 && part == 0) {
        b &= ~((1u << 16) | (1u << 17) | (1u << 21) | (1u << 26) | (1u << 27) | (1u << 28) | (1u << 30) | (1u << 31));
        c &= ~((1u << 1) | (1u << 6) | (1u << 11) | (1u << 12) | (1u << 14));
        d &= ~((1u << 2) | (1u << 3) | (1u << 8) | (1u << 22) | (1u << 23) | (1u << 24) | (1u << 25));
    } else if (leaf == 7 && part == 1) {
        a &= ~((1u << 4) | (1u << 5) | (1u << 21) | (1u << 23));
        d = 0;
    }
    registers[REG_RAX] = a;
    registers[REG_RBX] = b;
    registers[REG_RCX] = c;
    registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void hide(void) {
    struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
    if (!real_sigaction) real_sigaction = dlsym(RTLD_NEXT, "sigaction");
    real_sigaction(SIGSEGV, &action, &previous);
    if (syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0UL) != 0)
        fputs("avx2_only: this CPU or kernel does not let CPUID fault; nothing is hidden\n", stderr);
}

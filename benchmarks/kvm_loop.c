// SPDX-License-Identifier: Apache-2.0
// The least a program can do to run a guest: one vCPU, one memory slot, and a device of one byte that keeps what
// was last stored. It runs the flat image in argv[1] until the guest powers off, then prints how many exits it saw.

#include <fcntl.h>
#include <linux/kvm.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { RAM_SIZE = 16 << 20, IMAGE_OFFSET = 2 << 20 };
static const unsigned long ram_base = 0x80000000;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int try(int result, const char *what)
{
	if (result < 0)
		fail(what);
	return result;
}

static void *map(int fd, size_t size, int flags)
{
	void *address = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);

	if (address == MAP_FAILED)
		fail("mmap");
	return address;
}

static void load(const char *path, char *to, size_t room)
{
	int fd = try(open(path, O_RDONLY), path);

	try(read(fd, to, room), path);
	close(fd);
}

static void set_pc(int vcpu, unsigned long pc)
{
	struct kvm_one_reg reg = {
		.id = KVM_REG_RISCV | KVM_REG_SIZE_U64 | KVM_REG_RISCV_CORE | KVM_REG_RISCV_CORE_REG(regs.pc),
		.addr = (unsigned long)&pc,
	};

	try(ioctl(vcpu, KVM_SET_ONE_REG, &reg), "KVM_SET_ONE_REG");
}

static unsigned long loop(int vcpu, struct kvm_run *run)
{
	unsigned char kept = 0;

	for (unsigned long exits = 0;; exits++) {
		try(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
		if (run->exit_reason == KVM_EXIT_SYSTEM_EVENT)
			return exits;
		if (run->exit_reason != KVM_EXIT_MMIO) {
			fprintf(stderr, "unexpected exit %u\n", run->exit_reason);
			exit(1);
		}
		if (run->mmio.is_write) {
			kept = run->mmio.data[0];
		} else {
			memset(run->mmio.data, 0, sizeof(run->mmio.data));
			run->mmio.data[0] = kept;
		}
	}
}

int main(int argc, char **argv)
{
	if (argc != 2) {
		fprintf(stderr, "usage: %s IMAGE\n", argv[0]);
		return 2;
	}
	int kvm = try(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	int vm = try(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	char *ram = map(-1, RAM_SIZE, MAP_PRIVATE | MAP_ANONYMOUS);
	struct kvm_userspace_memory_region slot = {
		.guest_phys_addr = ram_base,
		.memory_size = RAM_SIZE,
		.userspace_addr = (unsigned long)ram,
	};

	load(argv[1], ram + IMAGE_OFFSET, RAM_SIZE - IMAGE_OFFSET);
	try(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot), "KVM_SET_USER_MEMORY_REGION");
	int vcpu = try(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	struct kvm_run *run = map(vcpu, try(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE"), MAP_SHARED);

	set_pc(vcpu, ram_base + IMAGE_OFFSET);
	printf("%lu\n", loop(vcpu, run));
	return 0;
}

// SPDX-License-Identifier: Apache-2.0
/*
 * Attacks the devices of the machine it runs on, from user space: reads and writes of every width and random
 * value on their registers and configuration space, and virtio rings full of nonsense, also while the device
 * works on them.
 *
 *	hostile SEED ROUNDS [consoles]
 *
 * Needs iomem=relaxed on the kernel command line and a huge page (it reserves one). Consoles are spared unless
 * asked for. What it gives devices to write to is its own memory, or no memory at all, so that the guest it runs
 * in lives on as long as the devices keep to what they were given. Prints a line for every device and round;
 * exits with 1 when a device no longer answers to a reset.
 */
#include "hostile.h"
#include <setjmp.h>
#include <signal.h>
#include <sys/stat.h>

enum { ARENA = 2 << 20, BUFFERS = 1 << 20, RINGS = 64 << 10, QUEUES = 4, LARGEST_RING = 256 };
enum { NEXT = 1, WRITE = 2, INDIRECT = 4, AVAILABLE = 1 << 7, USED = 1 << 15 };
enum { REGISTER_ACCESSES = 2000, CONFIG_ACCESSES = 200, STEPS = 60 };

struct descriptor { uint64_t address; uint32_t length; uint16_t flags, next; };

static uint8_t *arena;		/* first half: what descriptors point to; second half: rings */
static uint64_t arena_address, ram_end, state;
static unsigned long operations;

static uint64_t any(void) { return next(&state); }
static uint64_t below(uint64_t limit) { return any() % limit; }
static int chance(unsigned one_in) { return !below(one_in); }

/* The end of the highest memory there is. */
static uint64_t find_ram_end(void)
{
	char line[200];
	unsigned long long begin, end, found = 0;
	FILE *table = fopen("/proc/iomem", "r");

	while (table && fgets(line, sizeof line, table))
		if (sscanf(line, "%llx-%llx :", &begin, &end) == 2 && strstr(line, "System RAM") && end > found)
			found = end;
	if (table)
		fclose(table);
	if (!found)
		die("/proc/iomem does not say where memory ends");
	return found + 1;
}

static void make_arena(void)
{
	if (write_text("/proc/sys/vm/nr_hugepages", "1"))
		die("huge pages");
	arena = mmap(NULL, ARENA, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_POPULATE | MAP_LOCKED, -1, 0);
	if (arena == MAP_FAILED)
		die("a huge page");
	memset(arena, 0, ARENA);
	arena_address = physical(arena);
	if (!arena_address)
		die("/proc/self/pagemap");
}

/* An address at which there is no memory. */
static uint64_t nowhere(void)
{
	const uint64_t list[] = {
		0, 1, 0x1000, 0x10000000, 0x30000000, ram_end, ram_end + 0x1000, 1ULL << 40, 1ULL << 63, ~0ULL, ~0ULL - 0xFFF,
		~0ULL << 12, any() | 1ULL << 56,
	};

	return list[below(sizeof list / sizeof *list)];
}

/* Where a ring may be: what lies behind it in the arena is more than the largest ring. */
static uint64_t somewhere(void)
{
	return chance(4) ? nowhere() : arena_address + BUFFERS + below(ARENA - BUFFERS - 5 * RINGS);
}

/* Never longer than from its address, wherever in the buffers, to their end; or past the end of all memory. */
static void nonsense(struct descriptor *descriptor)
{
	const uint32_t lengths[] = { 0, 1, 2, 12, 16, 17, 512, 4096, 65536, 0xFFFFFFFF, 0x80000000 };
	uint64_t at = below(BUFFERS / 2);

	descriptor->address = chance(6) ? nowhere() : arena_address + (chance(2) ? at & ~0xFULL : at);
	descriptor->length = chance(3) ? below(BUFFERS / 2) : lengths[below(9)];
	if (chance(20) && ram_end - arena_address < 0x80000000)
		descriptor->length = lengths[9 + below(2)];
	descriptor->flags = chance(8) ? any() : below(2) * NEXT + below(2) * WRITE + chance(6) * INDIRECT;
	descriptor->next = chance(8) ? any() : below(LARGEST_RING);
}

static void fill_with_nonsense(uint8_t *from, size_t size)
{
	for (size_t at = 0; at + 16 <= size; at += 16) {
		struct descriptor descriptor;

		nonsense(&descriptor);
		memcpy(from + at, &descriptor, sizeof descriptor);
	}
}

/* Registers */

/* A machine may answer an access that no register has with a fault. */
static sigjmp_buf fault;

static void on_fault(int signal)
{
	(void)signal;
	siglongjmp(fault, 1);
}

static void access_register(const struct device *device, unsigned bar)
{
	unsigned width = 1u << below(4);
	size_t limit = device->size[bar] < 0x10000 || chance(4) ? device->size[bar] : 0x10000;
	volatile uint8_t *at = device->bar[bar] + below(limit / width) * width;

	operations++;
	if (sigsetjmp(fault, 1))
		return;
	if (at + width > device->addresses && at < device->addresses + device->addresses_size) {
		size_t word = (at - device->addresses) / 8;
		uint64_t address = somewhere();

		put32(device->addresses + 8 * word, address);
		put32(device->addresses + 8 * word + 4, address >> 32);
		return;
	}
	if (chance(3)) {
		(void)(width == 1 ? get8(at) : width == 2 ? get16(at) : width == 4 ? get32(at) : get64(at));
	} else {
		uint64_t value = chance(2) ? below(16) : any();

		switch (width) {
		case 1: put8(at, value); break;
		case 2: put16(at, value); break;
		case 4: put32(at, value); break;
		default: put64(at, value);
		}
	}
}

static void attack_registers(const struct device *device)
{
	for (unsigned i = 0; i < REGISTER_ACCESSES; i++) {
		unsigned bar = below(BARS);

		if (device->bar[bar])
			access_register(device, bar);
	}
}

/* Everything, and then all that was there before: a BAR or a command that stays lost would be the end of it. */
static void attack_config(const struct device *device)
{
	uint32_t kept[64];
	struct stat info;

	if (fstat(device->config, &info))
		die("%s: configuration space", device->name);
	for (unsigned i = 0; i < 64; i++)
		kept[i] = config_read(device, 4 * i, 4);
	for (unsigned i = 0; i < CONFIG_ACCESSES; i++) {
		unsigned width = 1u << below(3), at = below(info.st_size / width) * width;

		operations++;
		if (chance(3))
			config_read(device, at, width);
		else
			config_write(device, at, chance(2) ? below(16) : any(), width);
	}
	for (unsigned i = 1; i < 64; i++)
		if (i != 1)
			config_write(device, 4 * i, kept[i], 4);
	config_write(device, 4, kept[1] & 0xFFFF, 2);
}

/* Rings */

static uint64_t features_to_accept(uint64_t offered)
{
	enum { VERSION_1 = 32, RING_PACKED = 34 };
	uint64_t features = offered & (any() | any()) & ~(1ULL << RING_PACKED);

	return chance(10) ? any() : features | 1ULL << VERSION_1 | (chance(2) ? offered & 1ULL << RING_PACKED : 0);
}

static uint8_t *ring(unsigned queue) { return arena + BUFFERS + queue * 3 * RINGS; }

static void start_queue(const struct device *device, unsigned queue)
{
	static const unsigned sizes[] = { 0, 1, 2, 3, 8, 64, 256, 255, 1024, 32768, 65535 };
	uint64_t address = arena_address + (ring(queue) - arena);

	operations++;
	select_queue(device, queue);
	if (chance(2))
		set_queue_size(device, chance(2) ? sizes[below(sizeof sizes / sizeof *sizes)] : queue_size(device));
	for (unsigned which = 0; which < 3; which++)
		set_queue_address(device, which, chance(20) ? somewhere() : address + which * RINGS);
	enable_queue(device, chance(20) ? any() : 1);
}

static void offer(unsigned queue)
{
	uint8_t *descriptors = ring(queue), *available = descriptors + RINGS;
	unsigned slots = 1 + below(8);

	while (slots--) {
		struct descriptor descriptor;
		unsigned at = below(LARGEST_RING);

		nonsense(&descriptor);
		memcpy(descriptors + 16 * at, &descriptor, sizeof descriptor);
		if (chance(2))	/* as a packed ring has them */
			put16(descriptors + 16 * at + 14, (descriptor.flags & 7) | (chance(2) ? AVAILABLE : USED));
		put16(available + 4 + 2 * at, chance(8) ? any() : below(LARGEST_RING));
	}
	__sync_synchronize();
	put16(available, chance(4));
	put16(available + 2, get16(available + 2) + (chance(10) ? any() : 1 + below(4)));
}

static void one_step(const struct device *device)
{
	unsigned queue = below(QUEUES);

	operations++;
	switch (below(12)) {
	case 0: fill_with_nonsense(ring(queue), 16 * LARGEST_RING); break;
	case 1: start_queue(device, queue); break;
	case 2: select_queue(device, any()); kick(device, chance(4) ? any() : queue); break;
	case 3: if (chance(3)) set_status(device, chance(2) ? 0 : any()); break;
	case 4: if (chance(3)) { select_queue(device, queue); reset_queue(device, 1); } break;
	case 5: fill_with_nonsense(arena + below(BUFFERS / 4096) * 4096, 4096); break;
	case 6: if (chance(4)) pause_ms(1); break;
	default: offer(queue); kick(device, queue);
	}
}

static void attack_rings(const struct device *device)
{
	reset(device);
	set_status(device, ACKNOWLEDGE);
	set_status(device, ACKNOWLEDGE | DRIVER);
	set_features(device, features_to_accept(get_features(device)));
	set_status(device, ACKNOWLEDGE | DRIVER | FEATURES_OK);
	memset(ring(0), 0, ARENA - BUFFERS);
	fill_with_nonsense(arena, BUFFERS);
	for (unsigned queue = 0; queue < QUEUES; queue++) {
		fill_with_nonsense(ring(queue), 16 * LARGEST_RING);
		start_queue(device, queue);
	}
	set_status(device, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
	for (unsigned step = 0; step < STEPS; step++)
		one_step(device);
}

static int attack(const struct device *device)
{
	attack_registers(device);
	if (device->config >= 0)
		attack_config(device);
	if (!device->type)
		return get32(device->bar[0]) == 0x010000ED;
	for (int i = 0; i < 10; i++)
		attack_rings(device);
	return reset(device);
}

int main(int count, char **words)
{
	static struct device list[MAX_DEVICES];
	unsigned long rounds = count >= 3 ? strtoul(words[2], NULL, 0) : 0;
	int devices;

	if (!rounds) {
		fputs("usage: hostile SEED ROUNDS [consoles]\n", stderr);
		return 2;
	}
	state = strtoull(words[1], NULL, 0);
	ram_end = find_ram_end();
	make_arena();
	signal(SIGSEGV, on_fault);
	signal(SIGBUS, on_fault);
	devices = find_devices(list, count > 3);
	if (!devices)
		die("there is no device to attack");
	for (unsigned long round = 1; round <= rounds; round++)
		for (int i = 0; i < devices; i++) {
			printf("hostile: round %lu, %s, type %u\n", round, list[i].name, list[i].type);
			fflush(stdout);
			if (!attack(&list[i])) {
				printf("hostile: %s no longer answers, seed %s: FAILED\n", list[i].name, words[1]);
				return 1;
			}
		}
	printf("hostile: %lu operations on %d devices, seed %s: ok\n", operations, devices, words[1]);
	return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The edu device as edu.c sees it: found through sysfs, its registers mapped, and what is seen of it told. */
#ifndef EDU_H
#define EDU_H

#include "common.h"
#include <dirent.h>

enum {
	ID = 0x00, LIVENESS = 0x04, FACTORIAL = 0x08, STATUS = 0x20, INTERRUPT_STATUS = 0x24,
	RAISE = 0x60, ACKNOWLEDGE = 0x64, SOURCE = 0x80, DESTINATION = 0x88, COUNT = 0x90, COMMAND = 0x98,
};
enum { COMPUTING = 1, INTERRUPT_WHEN_DONE = 0x80 };
enum { RUN = 1, TO_RAM = 2, INTERRUPT_AT_END = 4 };
enum { FACTORIAL_DONE = 1, DMA_DONE = 0x100 };
enum { BUFFER = 0x40000, PAGE = 4096, BAR_SIZE = 1 << 20 };
enum { MEMORY = 2, BUS_MASTER = 4, INTX_DISABLE = 0x400 };	/* PCI command */
enum { PCI_COMMAND = 4, PCI_STATUS = 6, CAPABILITIES = 0x34, MSI = 0x05, MSIX = 0x11 };

static volatile uint8_t *bar;
static int config, failures;
static char device[300];

static void check(int good, const char *what, uint64_t seen)
{
	if (good)
		printf("edu: %s ok\n", what);
	else
		printf("edu: %s FAIL (saw %#llx)\n", what, (unsigned long long)seen);
	failures += !good;
	fflush(stdout);
}

static void check_equal(uint64_t seen, uint64_t wanted, const char *what)
{
	check(seen == wanted, what, seen);
}

static uint32_t get(unsigned offset) { return *(volatile uint32_t *)(bar + offset); }
static void put(unsigned offset, uint32_t value) { *(volatile uint32_t *)(bar + offset) = value; }
static uint64_t get_wide(unsigned offset) { return *(volatile uint64_t *)(bar + offset); }
static void put_wide(unsigned offset, uint64_t value) { *(volatile uint64_t *)(bar + offset) = value; }

static uint32_t config_read(int fd, unsigned offset, unsigned size)
{
	uint32_t value = 0;

	if (pread(fd, &value, size, offset) != (ssize_t)size)
		die("configuration space at %#x", offset);
	return value;
}

static void config_write(unsigned offset, uint32_t value, unsigned size)
{
	if (pwrite(config, &value, size, offset) != (ssize_t)size)
		die("configuration space at %#x", offset);
}

static void set_command(unsigned bits) { config_write(PCI_COMMAND, bits, 2); }

static void *map_resource(const char *directory, unsigned number, size_t size)
{
	char path[400];
	int fd;
	void *found;

	snprintf(path, sizeof path, "%s/resource%u", directory, number);
	fd = open(path, O_RDWR | O_SYNC | O_CLOEXEC);
	found = fd < 0 ? MAP_FAILED : mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (found == MAP_FAILED)
		die("%s", path);
	close(fd);
	return found;
}

static int has_id(const char *directory, const char *file, const char *wanted)
{
	char path[400], text[16];

	snprintf(path, sizeof path, "%s/%s", directory, file);
	read_text(path, text, sizeof text);
	return !strncmp(text, wanted, strlen(wanted));
}

static void find(void)
{
	static const char top[] = "/sys/bus/pci/devices";
	DIR *listing = opendir(top);
	struct dirent *entry;
	char path[400];

	while (listing && (entry = readdir(listing))) {
		snprintf(device, sizeof device, "%s/%s", top, entry->d_name);
		if (has_id(device, "vendor", "0x1234") && has_id(device, "device", "0x11e8"))
			break;
		device[0] = 0;
	}
	if (!listing || !device[0])
		die("there is no edu device");
	closedir(listing);
	snprintf(path, sizeof path, "%s/config", device);
	config = open(path, O_RDWR | O_CLOEXEC);
	if (config < 0)
		die("%s", path);
	set_command(MEMORY | BUS_MASTER | INTX_DISABLE);
	bar = map_resource(device, 0, BAR_SIZE);
}

static unsigned capability(int fd, unsigned wanted)
{
	unsigned at = config_read(fd, CAPABILITIES, 1), steps = 48;

	while (at && steps--) {
		if (config_read(fd, at, 1) == wanted)
			return at;
		at = config_read(fd, at + 1, 1);
	}
	return 0;
}

static int wait_clear(unsigned offset, uint32_t bit)
{
	for (int tries = 0; tries < 3000; tries++) {
		if (!(get(offset) & bit))
			return 1;
		pause_ms(10);
	}
	return 0;
}

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The devices as hostile.c sees them: found through sysfs, their drivers taken off, their registers mapped; and
 * virtio's few common registers, behind either transport.
 */
#ifndef HOSTILE_H
#define HOSTILE_H

#include "common.h"
#include <dirent.h>

enum { BARS = 6, MMIO_SIZE = 0x1000, MAX_DEVICES = 40 };
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 };
enum { VENDOR_CAPABILITY = 9, COMMON = 1, NOTIFY = 2 };
enum { MEMORY = 2, BUS_MASTER = 4, INTX_DISABLE = 0x400 };	/* PCI command */
enum { CONSOLE = 3 };						/* a virtio device type */

struct device {
	char name[64], directory[200];
	int config;			/* PCI configuration space; -1 for virtio-mmio */
	uint32_t type;			/* of a virtio device, else 0 */
	volatile uint8_t *bar[BARS];	/* all of virtio-mmio is bar[0] */
	size_t size[BARS];
	volatile uint8_t *common, *notify;	/* virtio-pci's structures */
	uint32_t multiplier;
	volatile uint8_t *addresses;	/* the registers that take guest addresses, */
	size_t addresses_size;		/* and how many bytes they are */
};

#define ACCESSORS(bits) \
	UNUSED static uint##bits##_t get##bits(volatile void *at) { return *(volatile uint##bits##_t *)at; } \
	UNUSED static void put##bits(volatile void *at, uint##bits##_t value) { *(volatile uint##bits##_t *)at = value; }
ACCESSORS(8)
ACCESSORS(16)
ACCESSORS(32)
ACCESSORS(64)

static uint32_t config_read(const struct device *device, unsigned offset, unsigned size)
{
	uint32_t value = 0;

	if (pread(device->config, &value, size, offset) != (ssize_t)size)
		die("%s: configuration space", device->name);
	return value;
}

static void config_write(const struct device *device, unsigned offset, uint32_t value, unsigned size)
{
	if (pwrite(device->config, &value, size, offset) != (ssize_t)size)
		die("%s: configuration space", device->name);
}

static void take_driver_off(const struct device *device)
{
	char path[300];

	snprintf(path, sizeof path, "%s/driver/unbind", device->directory);
	if (!access(path, F_OK) && write_text(path, device->name))
		die("%s: the driver stays", device->name);
}

static volatile uint8_t *map(const char *path, off_t offset, size_t size)
{
	int fd = open(path, O_RDWR | O_SYNC | O_CLOEXEC);
	void *found = fd < 0 ? MAP_FAILED : mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);

	if (found == MAP_FAILED)
		die("%s", path);
	close(fd);
	return found;
}

static void map_bars(struct device *device)
{
	enum { IS_MEMORY = 0x200 };
	char path[300], text[2048], *line = text;

	snprintf(path, sizeof path, "%s/resource", device->directory);
	read_text(path, text, sizeof text);
	for (int i = 0; i < BARS && line && *line; i++) {
		unsigned long long begin, end, flags;

		if (sscanf(line, "%llx %llx %llx", &begin, &end, &flags) == 3 && flags & IS_MEMORY) {
			snprintf(path, sizeof path, "%s/resource%d", device->directory, i);
			device->size[i] = end - begin + 1;
			device->bar[i] = map(path, 0, device->size[i]);
		}
		line = strchr(line, '\n');
		line += line != NULL;
	}
}

/* Virtual I/O Device (VIRTIO) 1.3, 4.1.4 */
static void find_structures(struct device *device)
{
	unsigned at = config_read(device, 0x34, 1);

	for (int steps = 48; at && steps--; at = config_read(device, at + 1, 1)) {
		unsigned kind = config_read(device, at + 3, 1), bar = config_read(device, at + 4, 1);

		if (config_read(device, at, 1) != VENDOR_CAPABILITY || bar >= BARS || !device->bar[bar])
			continue;
		if (kind == COMMON)
			device->common = device->bar[bar] + config_read(device, at + 8, 4);
		if (kind == NOTIFY) {
			device->notify = device->bar[bar] + config_read(device, at + 8, 4);
			device->multiplier = config_read(device, at + 16, 4);
		}
	}
	if (device->common) {
		device->addresses = device->common + 0x20;
		device->addresses_size = 0x18;
	}
}

static int open_pci(struct device *device, const char *name)
{
	char path[300];
	uint32_t id;

	snprintf(device->name, sizeof device->name, "%s", name);
	snprintf(device->directory, sizeof device->directory, "/sys/bus/pci/devices/%s", name);
	snprintf(path, sizeof path, "%s/config", device->directory);
	device->config = open(path, O_RDWR | O_CLOEXEC);
	if (device->config < 0)
		die("%s", path);
	id = config_read(device, 0, 4);
	device->type = (id & 0xFFFF) == 0x1AF4 && id >> 16 >= 0x1040 ? (id >> 16) - 0x1040 : 0;
	if (!device->type && id != 0x11E81234) {
		close(device->config);
		return 0;
	}
	return 1;
}

static void start_pci(struct device *device)
{
	take_driver_off(device);
	config_write(device, 4, MEMORY | BUS_MASTER | INTX_DISABLE, 2);
	map_bars(device);
	if (device->type) {
		find_structures(device);
	} else {
		device->addresses = device->bar[0] + 0x80;
		device->addresses_size = 0x20;
	}
}

static int open_mmio(struct device *device, const char *name)
{
	unsigned long long base = strtoull(name, NULL, 16);

	snprintf(device->name, sizeof device->name, "%s", name);
	snprintf(device->directory, sizeof device->directory, "/sys/bus/platform/devices/%s", name);
	device->config = -1;
	device->bar[0] = map("/dev/mem", base, MMIO_SIZE);
	device->size[0] = MMIO_SIZE;
	device->addresses = device->bar[0] + 0x80;
	device->addresses_size = 0x40;
	device->type = get32(device->bar[0] + 8);
	return device->type != 0;
}

/* virtio's common registers */

static void set_status(const struct device *device, unsigned status)
{
	if (device->common)
		put8(device->common + 0x14, status);
	else
		put32(device->bar[0] + 0x70, status);
}

static unsigned get_status(const struct device *device)
{
	return device->common ? get8(device->common + 0x14) : get32(device->bar[0] + 0x70);
}

static uint64_t get_features(const struct device *device)
{
	volatile uint8_t *select = device->common ? device->common : device->bar[0] + 0x14;
	volatile uint8_t *value = device->common ? device->common + 4 : device->bar[0] + 0x10;
	uint64_t found;

	put32(select, 1);
	found = (uint64_t)get32(value) << 32;
	put32(select, 0);
	return found | get32(value);
}

static void set_features(const struct device *device, uint64_t features)
{
	volatile uint8_t *select = device->common ? device->common + 8 : device->bar[0] + 0x24;
	volatile uint8_t *value = device->common ? device->common + 12 : device->bar[0] + 0x20;

	put32(select, 1);
	put32(value, features >> 32);
	put32(select, 0);
	put32(value, features);
}

/* A register of one queue: offsets of virtio-pci and virtio-mmio. */
static void put_queue(const struct device *device, unsigned pci, unsigned mmio, uint32_t value)
{
	if (device->common)
		put16(device->common + pci, value);
	else
		put32(device->bar[0] + mmio, value);
}

static void select_queue(const struct device *device, unsigned queue) { put_queue(device, 0x16, 0x30, queue); }
static void set_queue_size(const struct device *device, unsigned size) { put_queue(device, 0x18, 0x38, size); }
static void enable_queue(const struct device *device, unsigned value) { put_queue(device, 0x1C, 0x44, value); }
static void reset_queue(const struct device *device, unsigned value) { put_queue(device, 0x3A, 0xC0, value); }

static unsigned queue_size(const struct device *device)
{
	return device->common ? get16(device->common + 0x18) : get32(device->bar[0] + 0x34);
}

/* which: 0 descriptors, 1 the driver's area, 2 the device's */
static void set_queue_address(const struct device *device, unsigned which, uint64_t address)
{
	volatile uint8_t *at = device->common ? device->common + 0x20 + 8 * which : device->bar[0] + 0x80 + 0x10 * which;

	put32(at, address);
	put32(at + 4, address >> 32);
}

static void kick(const struct device *device, unsigned queue)
{
	if (!device->common) {
		put32(device->bar[0] + 0x50, queue);
		return;
	}
	select_queue(device, queue);
	put16(device->notify + get16(device->common + 0x1E) * device->multiplier, queue);
}

static int reset(const struct device *device)
{
	set_status(device, 0);
	for (int tries = 0; tries < 1000; tries++) {
		if (!get_status(device))
			return 1;
		pause_ms(10);
	}
	return 0;
}

/* All there are; a console only when asked for, since the way our words go out is likely one. */
static int find_devices(struct device *list, int consoles)
{
	static const char *const tops[] = { "/sys/bus/pci/devices", "/sys/bus/platform/devices" };
	int count = 0;

	for (int mmio = 0; mmio < 2; mmio++) {
		DIR *listing = opendir(tops[mmio]);
		struct dirent *entry;

		while (listing && (entry = readdir(listing)) && count < MAX_DEVICES) {
			struct device *device = &list[count];

			memset(device, 0, sizeof *device);
			if (entry->d_name[0] == '.' || (mmio && !strstr(entry->d_name, ".virtio")))
				continue;
			if (!(mmio ? open_mmio(device, entry->d_name) : open_pci(device, entry->d_name)))
				continue;
			if (device->type == CONSOLE && !consoles)
				continue;
			if (mmio)
				take_driver_off(device);
			else
				start_pci(device);
			count++;
		}
		if (listing)
			closedir(listing);
	}
	return count;
}

#endif

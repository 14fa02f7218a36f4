// SPDX-License-Identifier: Apache-2.0
/*
 * Moves data through a stream socket and says whether it arrived whole.
 *
 *	netload serve [ADDRESS] PORT [COUNT]	serve COUNT connections (1), one after the other
 *	netload send ADDRESS PORT BYTES		to a server, which answers with the sum of what it got
 *	netload receive ADDRESS PORT BYTES	from a server, which sends the sum at the end
 *	netload both ADDRESS PORT BYTES		both at once
 *	netload echo ADDRESS PORT BYTES		what the server gets, it sends back
 *	netload requests ADDRESS PORT COUNT	the same, a byte at a time: the next is sent when one is back
 *
 * ADDRESS is an IPv4 address, or vsock:CID; a server listens on all, with "vsock:" on vsock. Sizes take k, M,
 * G. Data is pseudo-random, its sum covers every byte and their order. Prints "netload: MODE BYTES ok, N MiB/s",
 * or "N /s" for requests, and exits with 0, or with 1 when data is wrong, or with 2 when the connection is.
 */
#include "common.h"
#include <arpa/inet.h>
#include <linux/vm_sockets.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>

enum { CHUNK = 64 << 10 };
enum { SEND = 1, RECEIVE = 2, ECHO = 4 };

struct request { uint64_t mode, bytes; };	/* how a client begins */

static union { struct sockaddr any; struct sockaddr_in inet; struct sockaddr_vm vsock; } address;
static socklen_t address_size;

static void parse(const char *where, const char *port)
{
	memset(&address, 0, sizeof address);
	if (!strncmp(where, "vsock:", 6)) {
		address.vsock.svm_family = AF_VSOCK;
		address.vsock.svm_cid = where[6] ? strtoul(where + 6, NULL, 0) : VMADDR_CID_ANY;
		address.vsock.svm_port = strtoul(port, NULL, 0);
		address_size = sizeof address.vsock;
		return;
	}
	address.inet.sin_family = AF_INET;
	address.inet.sin_port = htons(strtoul(port, NULL, 0));
	address_size = sizeof address.inet;
	if (inet_pton(AF_INET, where, &address.inet.sin_addr) != 1) {
		errno = 0;
		die("%s is no address", where);
	}
}

static uint64_t parse_size(const char *text)
{
	char *end;
	uint64_t value = strtoull(text, &end, 0);

	return value << (*end == 'k' ? 10 : *end == 'M' ? 20 : *end == 'G' ? 30 : 0);
}

static void write_all(int fd, const void *data, size_t size)
{
	for (size_t done = 0; done < size;) {
		ssize_t now = write(fd, (const char *)data + done, size - done);

		if (now <= 0)
			die("netload: sending FAILED");
		done += now;
	}
}

static void read_all(int fd, void *data, size_t size)
{
	for (size_t done = 0; done < size;) {
		ssize_t now = read(fd, (char *)data + done, size - done);

		if (now <= 0) {
			errno = now ? errno : 0;
			die("netload: the other side ended early: FAILED");
		}
		done += now;
	}
}

/* The sum so far, with more data mixed in: order matters, and every bit. */
static uint64_t add(uint64_t sum, const uint8_t *data, size_t size)
{
	uint64_t word;

	for (; size >= 8; size -= 8, data += 8) {
		memcpy(&word, data, 8);
		sum = (sum ^ word) * 0x9FB21C651E98DF25;
		sum ^= sum >> 32;
	}
	while (size--)
		sum = (sum ^ *data++) * 0x100000001B3;
	return sum;
}

/* Send so many bytes that follow from the seed, then their sum. */
static void send_data(int fd, uint64_t bytes, uint64_t seed)
{
	static _Thread_local uint64_t data[CHUNK / 8];
	uint64_t sum = 0;

	while (bytes) {
		size_t now = bytes < CHUNK ? bytes : CHUNK;

		for (unsigned i = 0; i < CHUNK / 8; i++)
			data[i] = next(&seed);
		sum = add(sum, (uint8_t *)data, now);
		write_all(fd, data, now);
		bytes -= now;
	}
	write_all(fd, &sum, 8);
}

static int receive_data(int fd, uint64_t bytes)
{
	static _Thread_local uint8_t data[CHUNK];
	uint64_t sum = 0, wanted;

	while (bytes) {
		size_t now = bytes < CHUNK ? bytes : CHUNK;

		read_all(fd, data, now);
		sum = add(sum, data, now);
		bytes -= now;
	}
	read_all(fd, &wanted, 8);
	return sum == wanted;
}

struct sending { int fd; uint64_t bytes, seed; };

static void *sender(void *argument)
{
	struct sending *work = argument;

	send_data(work->fd, work->bytes, work->seed);
	return NULL;
}

/* Do what this side has to do of the given modes; true when what came was right. */
static int exchange(int fd, unsigned sends, unsigned receives, uint64_t bytes, uint64_t seed)
{
	struct sending work = { fd, bytes, seed };
	pthread_t thread;
	int good = 1;

	if (sends && pthread_create(&thread, NULL, sender, &work))
		die("a thread");
	if (receives)
		good = receive_data(fd, bytes);
	if (sends)
		pthread_join(thread, NULL);
	return good;
}

static void echo(int fd, uint64_t bytes)
{
	static uint8_t data[CHUNK];

	for (uint64_t left = bytes + 8; left;) {	/* the sum goes back too */
		ssize_t now = read(fd, data, left < CHUNK ? left : CHUNK);

		if (now <= 0)
			die("netload: the other side ended early: FAILED");
		write_all(fd, data, now);
		left -= now;
	}
}

static int serve(int count)
{
	int listener = socket(address.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1, all_good = 1;

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (listener < 0 || bind(listener, &address.any, address_size) || listen(listener, 8))
		die("netload: listening FAILED");
	puts("netload: listening");
	fflush(stdout);
	while (count--) {
		struct request request;
		uint64_t good;
		int fd = accept(listener, NULL, NULL);

		if (fd < 0)
			die("netload: accepting FAILED");
		read_all(fd, &request, sizeof request);
		if (request.mode & ECHO)
			echo(fd, request.bytes), good = 1;
		else
			good = exchange(fd, request.mode & RECEIVE, request.mode & SEND, request.bytes, 2);
		write_all(fd, &good, 8);
		close(fd);
		printf("netload: served %llu bytes %s\n", (unsigned long long)request.bytes, good ? "ok" : "FAILED");
		fflush(stdout);
		all_good &= good;
	}
	return all_good ? 0 : 1;
}

static int connected(void)
{
	int fd = socket(address.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	for (int tries = 0; fd < 0 || connect(fd, &address.any, address_size); tries++) {
		if (tries == 50)
			die("netload: connecting FAILED");
		pause_ms(100);
	}
	return fd;
}

static int client(const char *name, unsigned mode, uint64_t bytes)
{
	struct request request = { mode, bytes };
	int fd = connected(), good;
	uint64_t other;
	double begin = seconds(), passed;

	write_all(fd, &request, sizeof request);
	good = exchange(fd, mode & (SEND | ECHO), mode & (RECEIVE | ECHO), bytes, 1);
	read_all(fd, &other, 8);
	passed = seconds() - begin;
	good = good && other == 1;
	printf("netload: %s %llu %s, %.1f MiB/s\n", name, (unsigned long long)bytes, good ? "ok" : "FAILED",
	       bytes / passed / (1 << 20));
	return good ? 0 : 1;
}

static int requests(uint64_t count)
{
	struct request request = { ECHO, count };
	int fd = connected(), good = 1;
	uint64_t sum = 0, other;
	double begin = seconds(), passed;

	write_all(fd, &request, sizeof request);
	for (uint64_t i = 0; i < count; i++) {
		uint8_t sent = next(&sum), back;

		write_all(fd, &sent, 1);
		read_all(fd, &back, 1);
		good &= back == sent;
	}
	passed = seconds() - begin;
	write_all(fd, &sum, 8);
	read_all(fd, &other, 8);
	good &= other == sum;
	read_all(fd, &other, 8);
	good &= other == 1;
	printf("netload: requests %llu %s, %.0f /s\n", (unsigned long long)count, good ? "ok" : "FAILED",
	       count / passed);
	return good ? 0 : 1;
}

int main(int count, char **words)
{
	static const struct { const char *name; unsigned mode; } modes[] = {
		{ "send", SEND }, { "receive", RECEIVE }, { "both", SEND | RECEIVE }, { "echo", ECHO },
	};

	signal(SIGPIPE, SIG_IGN);
	if (count >= 3 && !strcmp(words[1], "serve")) {
		int has_address = strpbrk(words[2], ".:") != NULL;

		parse(has_address ? words[2] : "0.0.0.0", words[2 + has_address]);
		return serve(count > 3 + has_address ? atoi(words[3 + has_address]) : 1);
	}
	if (count == 5 && !strcmp(words[1], "requests")) {
		parse(words[2], words[3]);
		return requests(parse_size(words[4]));
	}
	for (unsigned i = 0; count == 5 && i < sizeof modes / sizeof *modes; i++)
		if (!strcmp(words[1], modes[i].name)) {
			parse(words[2], words[3]);
			return client(modes[i].name, modes[i].mode, parse_size(words[4]));
		}
	fputs("usage: netload serve [ADDRESS] PORT [COUNT]\n"
	      "       netload send|receive|both|echo ADDRESS PORT BYTES\n"
	      "       netload requests ADDRESS PORT COUNT\n", stderr);
	return 2;
}

/* Says what the lease page says: cc -o check check.c. Exit code 0 while it may write, 1 when it may not. */
#include <inttypes.h>
#include <stdio.h>

#include "leasehold_page.h"

int main(void) {
    struct leasehold_lease lease = {0};
    uint64_t left = leasehold_page_left(leasehold_page_map(), &lease);
    if (left == 0) {
        puts("no");
        return 1;
    }
    printf("yes fence %" PRIu64 " epoch %" PRIu64, lease.fence, lease.epoch);
    printf(" generation %" PRIu64 " role %" PRIu64, lease.generation, lease.role);
    if (left != UINT64_MAX) printf(" left_ms %" PRIu64, left / 1000000);
    puts("");
    return 0;
}
